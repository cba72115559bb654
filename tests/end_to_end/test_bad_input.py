"""Whatever is wrong with what a user hands over ends in one line: what, where, and what to do (P35)."""

import json
import shutil
import socket
import subprocess

import pytest

from tests.common.corpus import write_jsonl
from tests.common.runs import prepare_corpus, run_command, write_config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(a folder to run commands in, the prefix of a data set in it)"""
    directory = tmp_path_factory.mktemp("runs")
    return directory, prepare_corpus(directory, documents=20)


def train(place, **settings) -> subprocess.CompletedProcess:
    """`deepy.py train.py` with a small config, two iterations on one process."""
    directory, data = place
    defaults = {
        "data_path": data, "train_iters": 2, "lr_decay_iters": 2, "eval_iters": 0, "num_gpus": 1,
    }  # fmt: skip
    config = write_config(directory, **defaults | settings)
    return run_command(["deepy.py", "train.py", config], directory, check=False)


def told(process: subprocess.CompletedProcess) -> str:
    """The error that a command ended with; it must be one line, and the only one."""
    output = process.stdout + process.stderr
    assert process.returncode not in (0, None), output
    assert "Traceback" not in output, output
    lines = process.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    assert len(errors) == 1 and lines[-1] == errors[0], output
    return errors[0].removeprefix("error: ")


CONFIG_MISTAKES = {
    "unknown key": ({"hiden_size": 32}, "unknown key 'hiden_size'; did you mean 'hidden_size'?"),
    "wrong type": ({"num_layers": "two"}, "num_layers='two' must be a whole number"),
    "wrong choice": (
        {"lr_decay_style": "cosin"},
        "must be one of constant, linear, cosine, exponential, wsd; did you mean",
    ),
    "width and heads": ({"hidden_size": 30}, "hidden_size=30 must be a multiple of num_attention_heads=4"),
    "grid of processes": (
        {"num_gpus": 3, "model_parallel_size": 2},
        "the job has 3 processes, which is not a multiple of pipe_parallel_size=0 x model_parallel_size=2; change",
    ),
    "batch": (
        {"train_batch_size": 5, "num_gpus": 2},
        "train_batch_size=5 must be a multiple of the data-parallel size (2)",
    ),
    "ZeRO-2 with a pipeline": (
        {"pipe_parallel_size": 1, "zero_optimization": {"stage": 2}},
        "the pipeline engine needs whole gradients; use stage 0 or 1, or pipe_parallel_size: 0",
    ),
    "not built yet": ({"te_mha": True}, "te_mha=True is not supported yet; leave it at False"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_a_mistake_in_the_config_is_told_before_anything_starts(place, mistake):
    settings, message = CONFIG_MISTAKES[mistake]
    process = train(place, **settings)
    assert message in told(process)
    assert process.stdout == ""


def test_all_problems_of_a_config_are_told_together(place):
    process = train(place, hidden_size=30, num_layer=2, train_iters="many", split="all")
    assert process.returncode == 1 and process.stdout == ""
    heading, *problems = process.stderr.splitlines()
    assert heading == "error: 4 problems in the configuration:"
    assert [problem.split("=")[0].split(";")[0] for problem in sorted(problems)] == [
        "  - hidden_size", "  - split", "  - train_iters", "  - unknown key 'num_layer'",
    ]  # fmt: skip


def test_a_command_line_that_names_what_is_not_there_is_told(place):
    directory, _ = place
    (directory / "real.yml").write_text("num_layers: 2\n")
    (directory / "broken.yml").write_text("num_layers: 2\nhidden_size: [3\n")
    (directory / "list.yml").write_text("- num_layers\n")
    for arguments, message in (
        (["trian.py", "real"], "trian.py: no such script; "),
        (["train.py", "rael"], "rael.yml: no such configuration file; did you mean 'real.yml'?"),
        (["train.py", "-d", "nowhere", "real"], "there is no folder 'nowhere'"),
        (["train.py", "broken"], "broken.yml, line 3: not valid YAML: "),
        (["train.py", "list"], "list.yml: must be a mapping of keys to values, not a list"),
        (["train.py", "real.yml", "real"], "two configuration files are named 'real.yml'; rename one"),
    ):
        process = run_command(["deepy.py", *arguments], directory, check=False)
        assert message in told(process)


def test_a_port_in_use_is_told_with_a_free_one(place):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = told(train(place, master_port=port))
    assert message.startswith(
        f"master_port={port} is in use on 127.0.0.1; set another one, such as master_port: "
    )


def test_a_worker_started_by_itself_tells_mistakes_as_well(place):
    directory, data = place
    config = write_config(directory, data_path=data, num_gpus=2)
    for arguments, message in (
        (["train.py"], "no configuration: name configuration files, or start the script through deepy.py"),
        (["train.py", config], "global_num_gpus=2; start the script through deepy.py or torchrun"),
        (["generate.py", config.replace("config", "confug")], "did you mean 'config.yml'?"),
    ):
        assert message in told(run_command(arguments, directory, check=False))


def damaged(place, name: str, bin_change=None, idx_change=None) -> str:
    """Prefix of a copy of the data set with its files' bytes changed."""
    directory, data = place
    for suffix, change in ((".bin", bin_change), (".idx", idx_change)):
        with open(data + suffix, "rb") as file:
            content = file.read()
        (directory / (name + suffix)).write_bytes(change(content) if change else content)
    return str(directory / name)


def test_data_that_is_missing_truncated_or_foreign_is_told_with_the_file(place):
    directory, _ = place
    shorter = damaged(place, "shorter", bin_change=lambda content: content[:-2])
    torn = damaged(place, "torn", idx_change=lambda content: content[:100])
    foreign = damaged(place, "foreign", idx_change=lambda content: b"PK\x03\x04" + content)
    for data, message in (
        (
            str(directory / "nothing"),
            "nothing.idx does not exist: a data set is given as the path of its .bin and .idx",
        ),
        (shorter, "shorter.bin is truncated: "),
        (torn, "torn.idx is truncated: 100 bytes instead of "),
        (foreign, "foreign.idx is not the index of a data set"),
    ):
        error = told(train(place, data_path=data))
        assert message in error
        assert "without suffix" in error or "make the data set again" in error


def test_data_of_another_kind_than_the_config_says_is_told(place):
    error = told(train(place, data_impl="cached"))
    assert "is not the index of a data set of kind cached: set data_impl to infer" in error


def test_a_broken_line_of_input_text_is_told_with_file_and_line(place):
    directory, _ = place
    path = write_jsonl(directory / "lines.jsonl", ["one", "two", "three"])
    path.write_text(path.read_text().replace('"two"}', '"two"'))
    arguments = [
        "tools/datasets/preprocess_data.py",
        "--input",
        path,
        "--tokenizer-type",
        "CharLevelTokenizer",
    ]
    process = run_command([*arguments, "--output-prefix", "lines"], directory, check=False)
    assert "lines.jsonl, line 2: not valid JSON" in told(process)
    assert not list(directory.glob("lines_text_document.*"))


def test_a_place_that_output_cannot_go_to_is_told_before_the_work(place):
    directory, _ = place
    taken = directory / "taken_by_a_file"
    taken.write_text("")
    (directory / "texts").mkdir()
    write_jsonl(directory / "texts" / "some.jsonl", ["some text"])
    for command, option in (
        (["tools/datasets/preprocess_data.py", "--input", "texts", "--tokenizer-type", "CharLevelTokenizer"],
         "--output-prefix"),
        (["megatron/tokenizer/train_tokenizer.py", "--json_input_dir", "texts"], "--tokenizer_output_path"),
        (["prepare_data.py", "stdlib"], "--data-dir"),
    ):  # fmt: skip
        error = told(run_command([*command, option, taken / "below" / "name"], directory, check=False))
        assert (
            error.startswith(f"{option}: cannot make the folder {taken}") and "choose another place" in error
        )


def test_a_tokenizer_file_that_is_missing_or_broken_is_told(place):
    directory, _ = place
    broken = directory / "tokenizer.json"
    broken.write_text(json.dumps({"version": "1.0", "model": {"type": "BPE"}})[:-5])
    for file, message in (
        (None, "HFTokenizer needs vocab_file"),
        ("missing.json", "vocab_file missing.json does not exist"),
        (str(broken), "tokenizer.json is not a tokenizer of the `tokenizers` library"),
    ):
        assert message in told(train(place, tokenizer_type="HFTokenizer", vocab_file=file))


def test_a_checkpoint_that_is_missing_torn_or_of_another_model_is_told(place):
    directory, _ = place
    folder = directory / "saved"
    settings = {"save": str(folder), "load": str(folder), "checkpoint_factor": 1}
    assert train(place, **settings).returncode == 0
    assert sorted(path.name for path in folder.glob("global_step*")) == ["global_step1", "global_step2"]

    elsewhere = str(directory / "elsewhere")
    error = told(train(place, load=elsewhere))
    assert (
        f"there is no checkpoint in {elsewhere}; correct the path (to train from scratch leave `load` out)"
        in error
    )
    error = told(train(place, load=str(folder), iteration=7))
    assert "has no checkpoint of iteration 7; available: 1, 2" in error
    error = told(train(place, load=str(folder), num_layers=3))
    assert "is of another model: num_layers is 2 in the checkpoint and 3 in the config" in error

    error = told(train(place, load=str(folder), pos_emb="learned", gpt_j_residual=False))
    assert "gpt_j_residual is True in the checkpoint and False in the config; pos_emb is rotary in" in error

    torn = directory / "all_torn"
    shutil.copytree(folder, torn)
    for path in torn.glob("global_step*/mp_rank_00_model_states.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    process = train(place, load=str(torn), save=str(torn), checkpoint_factor=1)
    assert f"no checkpoint in {torn} can be used" in told(process)
    assert process.stderr.count("mp_rank_00_model_states.pt has 1000 bytes instead of") == 2


def test_places_that_cannot_be_written_are_told_before_training(place):
    directory, _ = place
    # A file in the folder's place: the permissions of a folder mean nothing to root.
    (directory / "taken").write_text("")
    for settings, key in (
        ({"save": str(directory / "taken"), "checkpoint_factor": 1}, "save"),
        ({"save": str(directory / "taken" / "below"), "checkpoint_factor": 1}, "save"),
        ({"log_dir": str(directory / "taken")}, "log_dir"),
        ({"tensorboard_dir": str(directory / "taken")}, "tensorboard_dir"),
    ):
        process = train(place, **settings)
        error = told(process)
        assert error.startswith(key) and str(directory / "taken") in error and "choose another" in error
        assert "iteration" not in process.stdout.split("meeting at")[1]


def test_a_mistake_that_every_process_meets_is_told_once(place):
    error = told(train(place, num_gpus=2, data_path="nothing"))
    assert "nothing.idx does not exist" in error


def test_what_training_cannot_do_without_is_told_together(place):
    process = train(place, train_iters=None, optimizer=None, data_path=None)
    assert process.returncode == 1
    heading, *missing = process.stderr.splitlines()
    assert heading == "error: 3 problems in the configuration:"
    keys = ("train_iters or train_epochs", "data_path or train_data_paths", "optimizer")
    assert all(line.startswith(f"  - set {key}: ") for line, key in zip(missing, keys, strict=True))

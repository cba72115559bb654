import base64
import json

import pytest

from megatron.common.errors import ConfigError, LaunchError
from megatron.neox_arguments import NeoXArgs, command_line
from tests.unit.neox_arguments.basic import MINIMAL, minimal


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a script and two configuration files."""
    monkeypatch.chdir(tmp_path)
    for name in ("DLTS_HOSTFILE", "MASTER_ADDR", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "train.py").touch()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "model.yml").write_text(json.dumps(MINIMAL))
    (tmp_path / "conf" / "more.json").write_text('{"train-iters": 5}')
    return tmp_path


def test_configuration_files_need_neither_suffix_nor_folder(folder):
    args = NeoXArgs.consume_deepy_args(["train.py", "-d", "conf", "model", "more.json"])
    assert (args.num_layers, args.train_iters, args.user_script) == (2, 5, "train.py")
    assert set(args.config_files) == {"model.yml", "more.json"}
    assert args.dry_run is False


def test_options_may_stand_anywhere_and_override_keys(folder):
    given = [
        "-i",
        "prompts.txt",
        "train.py",
        "--iteration",
        "7",
        "conf/model.yml",
        "-o",
        "out.jsonl",
        "--dry-run",
    ]
    args = NeoXArgs.consume_deepy_args(given)
    assert (args.iteration, args.sample_input_file, args.sample_output_file) == (
        7,
        "prompts.txt",
        "out.jsonl",
    )
    assert args.dry_run is True


def test_profiles_can_be_asked_for_on_the_command_line(folder):
    (folder / "conf" / "logged.yml").write_text("log_dir: logs")
    given = ["train.py", "-d", "conf", "model", "logged"]
    args = NeoXArgs.consume_deepy_args([*given, "--memory_profiling"])
    assert args.memory_profiling and not args.profile
    args = NeoXArgs.consume_deepy_args([*given, "--profile"])
    assert args.profile and not args.memory_profiling


def test_a_missing_script_is_named(folder):
    with pytest.raises(LaunchError, match="trian.py: no such script"):
        NeoXArgs.consume_deepy_args(["trian.py", "conf/model.yml"])


def test_a_worker_gets_the_launchers_configuration(folder):
    launched = NeoXArgs.consume_deepy_args(["train.py", "-d", "conf", "model", "more.json"])
    command = launched.get_deepspeed_main_args()
    assert command[0] == "train.py"
    worker = NeoXArgs.consume_neox_args(input_args=["--local_rank=1", *command[1:]])
    assert worker == launched
    carried = json.loads(base64.urlsafe_b64decode(command[command.index("--deepspeed_config") + 1]))
    assert carried == launched.deepspeed_config


def test_a_job_that_is_started_again_goes_on_from_what_it_has_saved(folder):
    began = {"load": "base", "save": "here", "checkpoint_factor": 5, "finetune": True, "iteration": 7}
    launched = NeoXArgs.from_dict(minimal(**began, seed=5))
    resumed = NeoXArgs.consume_neox_args(input_args=launched.resuming_arguments())
    assert (resumed.load, resumed.save, resumed.finetune, resumed.iteration) == ("here", "here", False, None)
    assert (resumed.seed, resumed.no_load_optim, launched.load) == (5, False, "base")


def test_what_follows_from_other_keys_is_not_handed_over(folder):
    args = NeoXArgs.from_dict(minimal(optimizer={"type": "Adam", "params": {"lr": 0.1}}))
    assert not {"lr", "train_batch_size", "attention_config", "batch_size"} & set(args.handover())
    assert args.handover()["global_num_gpus"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_type": "hftokenizer", "norm": "LayerNorm"},
        {"attention_config": [[["flash"], "all"]]},
        {"model_parallel_size": 0, "precision": "fp16", "fp16": {"enabled": False, "loss_scale": 4}},
        {"train_data_paths": ["a"], "valid_data_paths": ["b"], "test_data_paths": ["c"]},
        {
            "zero_optimization": {"stage": 1, "reduce_bucket_size": 5e7},
            "checkpoint_factor": 2.5,
            "checkpoint_scale": "log",
        },
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_was_given_in_another_shape_is_handed_over_all_the_same(folder, changes):
    launched = NeoXArgs.from_dict(minimal(**changes))
    assert NeoXArgs.consume_neox_args(input_args=launched.worker_arguments()) == launched
    assert launched.variant() == launched


def test_overrides_of_a_worker_win(folder):
    launched = NeoXArgs.from_dict(
        minimal(
            zero_optimization={"stage": 1},
            train_batch_size=8,
            optimizer={"type": "Adam", "params": {"lr": 0.1}},
        )
    )
    overrides = {"zero_optimization": None, "optimizer": None, "checkpoint_activations": False}
    worker = NeoXArgs.consume_neox_args(overrides, launched.worker_arguments())
    assert (worker.zero_stage, worker.optimizer, worker.lr) == (0, None, 0.001)


def test_a_worker_may_be_given_plain_files(folder):
    args = NeoXArgs.consume_neox_args(input_args=["-d", "conf", "model", "more.json"])
    assert args.train_iters == 5
    with pytest.raises(ConfigError, match="no configuration: name configuration files"):
        NeoXArgs.consume_neox_args(input_args=[])


def test_a_script_without_deepy_takes_the_options_that_stand_for_keys_and_refuses_others(folder):
    line = ["-d", "conf", "model", "more.json", "--eval_tasks", "a", "b", "-i", "p.txt", "--iteration", "7"]
    args = NeoXArgs.consume_neox_args({"iteration": 9}, line)
    assert (args.eval_tasks, args.sample_input_file, args.iteration) == (["a", "b"], "p.txt", 9)
    for wrong in (["--train_iters", "9"], ["-i", "p.txt", "more.json"], ["-H", "hosts"]):
        with pytest.raises(ConfigError, match="is not understood here"):
            NeoXArgs.consume_neox_args(input_args=["-d", "conf", "model", *wrong])


def test_what_a_launcher_adds_to_its_hand_over_is_ignored(folder):
    launched = NeoXArgs.from_dict(minimal())
    line = [*launched.worker_arguments(), "--local_rank=3", "--node_rank", "1"]
    assert NeoXArgs.consume_neox_args(input_args=line) == launched


def test_a_configuration_too_long_for_an_argument_travels_in_a_file(folder):
    paths = [f"data/part_{number}_text_document" for number in range(6000)]
    launched = NeoXArgs.from_dict(
        minimal(
            train_data_paths=paths,
            valid_data_paths=["v"],
            test_data_paths=["t"],
            save=str(folder / "save"),
            checkpoint_factor=10,
        )
    )
    arguments = launched.worker_arguments()
    assert max(map(len, arguments)) < command_line.LONGEST_ARGUMENT
    assert NeoXArgs.consume_neox_args(input_args=arguments) == launched


def test_a_garbled_hand_over_is_refused():
    for text in ("%%%", base64.urlsafe_b64encode(b"[1]").decode(), "nowhere.json"):
        with pytest.raises(ConfigError, match="--megatron_config"):
            NeoXArgs.consume_neox_args(input_args=["--megatron_config", text])


def test_launcher_options_appear_in_order_and_only_if_changed(folder):
    hosts = folder / "hosts"
    hosts.write_text("one slots=1\n")
    args = NeoXArgs.from_dict(
        minimal(hostfile=str(hosts), launcher="slurm", no_ssh_check=True, num_gpus=1, master_port=1234)
    )
    assert command_line.launcher_options(args) == [
        *("--hostfile", str(hosts), "--num_gpus", "1", "--master_port", "1234"),
        *("--launcher", "slurm", "--no_ssh_check"),
    ]


def test_slurm_comment_and_account_reach_the_starter(folder, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node7")
    args = NeoXArgs.from_dict(minimal(deepspeed_slurm=True, comment="neox", account="me"))
    assert command_line.launcher_options(args) == [
        *("--launcher", "slurm", "--force_multi"),
        *("--launcher_args=--comment=neox --account=me", "--master_addr", "node7"),
    ]


def test_a_filter_takes_the_place_of_the_number_of_gpus(folder):
    args = NeoXArgs.from_dict(minimal(include="localhost:0", num_gpus=1))
    assert command_line.launcher_options(args) == ["--include", "localhost:0"]


def test_deepspeeds_launcher_accepts_the_command_line(folder):
    from deepspeed.launcher import runner

    args = NeoXArgs.from_dict(
        minimal(deepspeed_slurm=True, comment="neox", launcher="slurm", user_script="train.py")
    )
    parsed = runner.parse_args(args.get_deepspeed_main_args())
    assert (parsed.launcher, parsed.force_multi, parsed.launcher_args) == ("slurm", True, "--comment=neox")
    assert parsed.user_script == "train.py"
    worker = NeoXArgs.consume_neox_args(input_args=parsed.user_args)
    assert worker.comment == "neox"


def test_true_is_a_bare_flag_and_false_is_nothing():
    convert = NeoXArgs.convert_key_value_to_command_line_arg
    assert [convert("k", v) for v in (True, False, None, 3, "x")] == [
        ["--k"],
        [],
        [],
        ["--k", "3"],
        ["--k", "x"],
    ]

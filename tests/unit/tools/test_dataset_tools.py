"""The command lines around preprocessing."""

import os
import subprocess
import sys

import pytest

from megatron.data.indexed_dataset import make_dataset
from tests.common.corpus import write_jsonl
from tests.common.paths import ROOT

MULTINODE = ROOT / "tools" / "datasets" / "multinode_prepare_data.sh"


def multinode(arguments, **environment) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        ["bash", MULTINODE, *arguments],
        env={**kept, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("rank_name, size_name", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
def test_nodes_take_contiguous_shares_and_the_last_one_the_rest(rank_name, size_name, tmp_path):
    for number in range(5):
        write_jsonl(tmp_path / f"{number}.jsonl", [f"{number}"])
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{tmp_path}/{number}.jsonl\n" for number in range(5)))
    for rank, expected in [(0, ["0", "1"]), (1, ["2", "3", "4"])]:
        arguments = [listed, "--output-prefix", tmp_path / "out", "--tokenizer-type", "CharLevelTokenizer"]
        done = multinode(arguments, **{rank_name: str(rank), size_name: "2"})
        assert done.returncode == 0, done.stderr
        dataset = make_dataset(f"{tmp_path}/out{rank}_text_document", "mmap")
        assert [bytes(dataset[number].astype("u1")).decode() for number in range(len(dataset))] == expected


def test_more_nodes_than_files_leave_the_first_ones_idle(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{write_jsonl(tmp_path / 'a.jsonl', ['a'])}\n")
    done = multinode([listed, "--tokenizer-type", "CharLevelTokenizer"], RANK="0", WORLD_SIZE="2")
    assert done.returncode == 0 and "no file to do" in done.stdout


def test_a_failing_share_fails_the_node(tmp_path):
    assert multinode([tmp_path / "nowhere.txt"]).returncode == 1
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path}/nowhere.jsonl\n")
    done = multinode([listed, "--output-prefix", tmp_path / "p", "--tokenizer-type", "CharLevelTokenizer"])
    assert done.returncode == 1 and "nowhere.jsonl does not exist" in done.stderr


def test_prepare_data_knows_gpt_neox_options():
    from prepare_data import get_args

    assert get_args([]).dataset == "enwik8"
    args = get_args(["Pile", "-t", "HFTokenizer", "-d", "D", "-v", "V", "-m", "M", "-f"])
    assert (args.dataset, args.tokenizer, args.data_dir) == ("pile", "HFTokenizer", "D")
    assert (args.vocab_file, args.merge_file, args.force_redownload) == ("V", "M", True)
    with pytest.raises(SystemExit):
        get_args(["no_such_corpus"])


def test_prepare_data_fails_with_one_line_where_nothing_can_be_fetched(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "NEOX_DATA_SOURCES"}
    done = subprocess.run(
        [sys.executable, ROOT / "prepare_data.py", "-d", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no source is known for enwik8.zip") and done.stderr.count("\n") == 1


def test_preprocess_data_accepts_beginnings_of_option_names_and_any_case(tmp_path):
    from megatron.data.preprocessing.cli import get_parser

    required = ["--input", "a.jsonl", "--output", "p"]
    args = get_parser("").parse_args(
        [*required, "--tokenizer-t", "gpt2bpetokenizer", "--vocab", "v", "--merge", "m"]
    )
    assert (args.tokenizer_type, args.vocab_file, args.merge_file) == ("GPT2BPETokenizer", "v", "m")
    assert (args.jsonl_keys, args.dataset_impl, args.workers, args.log_interval) == (["text"], "mmap", 1, 100)
    with pytest.raises(SystemExit):
        get_parser("").parse_args([*required, "--tokenizer-type", "unknown"])

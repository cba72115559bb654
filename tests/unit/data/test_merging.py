"""Joining data sets on disk, through the command lines."""

import subprocess
import sys

import numpy as np
import pytest

from megatron.data.indexed_dataset import open_dataset
from tests.common.paths import ROOT
from tests.unit.data.samples import numbered, write_dataset


def run(tool, *arguments, cwd=None):
    command = [sys.executable, str(ROOT / "tools" / "datasets" / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(params=["mmap", "cached"])
def impl(request):
    return request.param


def test_all_data_sets_of_a_folder_are_joined_in_order(tmp_path, impl):
    shards = tmp_path / "shards"
    shards.mkdir()
    documents = numbered([3, 2, 4, 5, 6])
    for name, part in (("b", documents[2:4]), ("a", documents[:2]), ("c", documents[4:])):
        write_dataset(shards / name, part, impl)
    done = run("merge_datasets.py", "--input", shards, "--output-prefix", "plain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 documents, 20 tokens" in done.stdout
    merged = open_dataset(tmp_path / "plain")
    merged.verify()
    assert [item.tolist() for item in merged[:]] == documents
    assert merged.doc_idx.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_cannot_be_joined_is_one_line(tmp_path):
    shards = tmp_path / "shards"
    cases = [
        (lambda: None, "is not a folder"),
        (shards.mkdir, "holds no data sets"),
        (lambda: write_dataset(shards / "a", [[1]]), None),
        (lambda: write_dataset(shards / "b", [[1]], dtype=np.uint16), "b (mmap, uint16) cannot be joined to"),
        (lambda: write_dataset(shards / "b", [[1]], "cached"), "b (cached, int32) cannot be joined to"),
        (lambda: (shards / "b.bin").unlink(), "b.idx has no"),
    ]
    for prepare, message in cases:
        prepare()
        done = run("merge_datasets.py", "--input", shards, "--output-prefix", tmp_path / "all")
        assert done.returncode == (0 if message is None else 1)
        if message:
            assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_output_that_is_an_input_or_nowhere_is_refused(tmp_path):
    write_dataset(tmp_path / "a", [[1]])
    for output, message in ((tmp_path / "a", "itself one of"), (tmp_path / "no" / "a", "is not a folder")):
        done = run("merge_datasets.py", "--input", tmp_path, "--output-prefix", output)
        assert done.returncode == 1 and message in done.stderr
    assert open_dataset(tmp_path / "a")[0].tolist() == [1]


def test_tokens_are_counted(tmp_path):
    prefixes = [
        write_dataset(tmp_path / "a", numbered([3, 4])),
        write_dataset(tmp_path / "b", numbered([5]), "cached"),
    ]
    done = run("dataset_token_count.py", "--verify", *prefixes)
    assert done.returncode == 0 and done.stdout == f"{prefixes[0]}: 7 tokens\n{prefixes[1]}: 5 tokens\n"
    assert run("dataset_token_count.py").returncode == 1
    done = run("dataset_token_count.py", tmp_path / "absent")
    assert done.returncode == 1 and "absent.idx does not exist" in done.stderr

"""The example of a sample server serves the lines of a file in their order."""

import json
import signal
import subprocess
import sys

import pytest

from megatron.data.online_dataset import OnlineDataset
from tests.common.paths import ROOT
from tests.common.ports import quiet_ports

SCRIPT = ROOT / "tools" / "serving" / "sample_server.py"


def start(folder, lines: list, *options: str) -> subprocess.Popen:
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    command = [sys.executable, str(SCRIPT), str(folder / "samples.jsonl"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_texts_and_tokens_are_served_again_and_again_to_the_splits_they_are_for(tmp_path):
    lines = [
        {"prefix": "a", "completions": ["b", [3, 4]], "rewards": [1, 0], "split": "train"},
        {"prefix": [9], "completions": [[10]], "rewards": [0.5]},
    ]
    (port,) = quiet_ports(1)
    with start(
        tmp_path, lines, "--port", str(port), "--prompts", "1", "--tokenizer-type", "CharLevelTokenizer"
    ) as server:
        try:
            while not (line := server.stdout.readline()).startswith("serving"):
                assert line, server.stderr.read()
            train, valid = (
                OnlineDataset(8, 3, data_split=split, dataserver_ports=port) for split in ("train", "valid")
            )
            texts = [train[0]["text"].tolist() for _ in range(4)]
            assert texts == [[97, 98, 0, 0], [97, 3, 4, 0], [9, 10, 0, 0], [97, 98, 0, 0]]
            assert [valid[0]["text"].tolist() for _ in range(2)] == [[9, 10, 0, 0]] * 2
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 130


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"prefix": "a", "completions": [], "rewards": []}, "texts need --tokenizer-type"),
        ([1], "no object with prefix"),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path, line, what):
    with start(tmp_path, [line]) as server:
        said = server.communicate(timeout=60)[1]
    assert server.returncode == 1
    assert said.startswith(f"error: {tmp_path}/samples.jsonl:1: ") and what in said

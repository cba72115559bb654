"""The example of a sample server serves the lines of a file in their order."""

import importlib.util
import json
import signal
import subprocess
import sys

import pytest

from megatron.common.errors import DataError
from megatron.data.online_dataset import OnlineDataset
from tests.common.paths import ROOT
from tests.common.ports import quiet_ports

SCRIPT = ROOT / "tools" / "serving" / "sample_server.py"


def script():
    spec = importlib.util.spec_from_file_location("sample_server", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    ("text", "told"),
    [
        ('{"prefix": "a", "completions": [], "rewards": []}', ":1: texts need --tokenizer-type"),
        ("\n[1]", ":2: no object with prefix"),
        ("\n", " has no samples in it"),
        (b"\xff\xfe", " cannot be read as UTF-8 text"),
        (None, " cannot be read as UTF-8 text: No such file or directory"),
    ],
)
def test_a_file_or_line_that_has_no_samples_is_named(tmp_path, text, told):
    path = tmp_path / "samples.jsonl"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"^{path}{told}"):
        script().FileOfSamples(path, 1)


def test_a_line_ends_where_json_lines_end(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"prefix": "a\u2028b", "completions": ["c"], "rewards": [1]}\n', encoding="utf-8")
    (group,) = script().FileOfSamples(path, 1, encode=list).answer("train", 0)
    assert group["prefix"] == ["a", "\u2028", "b"]

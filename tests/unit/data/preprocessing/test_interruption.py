"""A run that is stopped, killed or loses a worker leaves nothing that looks complete, and can be taken up again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron.common.errors import DataError
from megatron.data.preprocessing import run as run_module
from megatron.data.preprocessing.encode import EncodeJob
from megatron.data.preprocessing.run import PreprocessPlan, preprocess
from tests.common.paths import ROOT
from tests.unit.data.preprocessing.test_preprocess import same_files

TOOL = ROOT / "tools" / "datasets" / "preprocess_data.py"


def stop_after(monkeypatch, blocks: int, error: BaseException) -> None:
    """The next runs end with `error` after that many blocks."""
    original = run_module.encode_blocks

    def stopping(*args):
        for number, block in enumerate(original(*args)):
            if number == blocks:
                raise error
            yield block

    monkeypatch.setattr(run_module, "encode_blocks", stopping)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_an_interrupted_run_is_taken_up_where_it_stopped(blocks, spec, corpus, tmp_path, monkeypatch, capsys):
    plan = PreprocessPlan(str(corpus), str(tmp_path / "p"), EncodeJob(spec, append_eod=True))
    whole = preprocess(PreprocessPlan(str(corpus), str(tmp_path / "whole"), plan.job))
    with monkeypatch.context() as patch:
        stop_after(patch, blocks, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            preprocess(plan)
    assert not (tmp_path / "p_text_document.bin").exists() and not (tmp_path / "p_text_document.idx").exists()
    assert preprocess(plan) == whole
    assert "going on with the run that was interrupted" in capsys.readouterr().out
    assert same_files(tmp_path / "p", tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.glob("p*")) == ["p_text_document.bin", "p_text_document.idx"]


def test_what_was_written_after_the_last_journal_entry_is_done_again(spec, corpus, tmp_path, monkeypatch):
    plan = PreprocessPlan(str(corpus), str(tmp_path / "p"), EncodeJob(spec))
    preprocess(PreprocessPlan(str(corpus), str(tmp_path / "whole"), plan.job))
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            preprocess(plan)
    for name in ("p_text_document.bin.part", "p_text_document.sizes.part"):
        with open(tmp_path / name, "ab") as file:
            file.write(b"what a killed process had still written")
    preprocess(plan)
    assert same_files(tmp_path / "p", tmp_path / "whole")


def test_an_interruption_inside_a_large_document_is_taken_up_too(char_job, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some words " * 200_000)
    plan = PreprocessPlan(str(tmp_path / "a.txt"), str(tmp_path / "p"), char_job)
    preprocess(PreprocessPlan(str(tmp_path / "a.txt"), str(tmp_path / "whole"), char_job))
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            preprocess(plan)
    assert preprocess(plan).documents == 1
    assert same_files(tmp_path / "p", tmp_path / "whole")


@pytest.mark.parametrize("change", ["input", "settings", "parts", "journal", "no_resume"])
def test_a_journal_of_something_else_is_not_taken_up(change, spec, corpus, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(corpus.read_bytes())
    plan = PreprocessPlan(str(copy), str(tmp_path / "p"), EncodeJob(spec, append_eod=True))
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            preprocess(plan)
    if change == "input":
        copy.write_bytes(corpus.read_bytes().replace(b"def", b"fed"))
    elif change == "settings":
        plan = PreprocessPlan(plan.inputs, plan.output_prefix, EncodeJob(spec))
    elif change == "parts":
        os.truncate(tmp_path / "p_text_document.bin.part", 10)
    elif change == "journal":
        (tmp_path / "p.preprocessing.json").write_text("{half")
    else:
        plan = PreprocessPlan(plan.inputs, plan.output_prefix, plan.job, resume=False)
    preprocess(plan)
    preprocess(PreprocessPlan(str(copy), str(tmp_path / "whole"), plan.job))
    assert "going on with" not in capsys.readouterr().out
    assert same_files(tmp_path / "p", tmp_path / "whole")


def test_a_failed_run_does_not_touch_an_older_data_set(spec, corpus, tmp_path, monkeypatch):
    plan = PreprocessPlan(str(corpus), str(tmp_path / "p"), EncodeJob(spec))
    for name in ("p", "older"):
        preprocess(PreprocessPlan(str(corpus), str(tmp_path / name), EncodeJob(spec, append_eod=True)))
    stop_after(monkeypatch, 2, DataError("a bad line"))
    with pytest.raises(DataError, match="a bad line"):
        preprocess(plan)
    assert same_files(tmp_path / "p", tmp_path / "older")


def test_two_runs_cannot_write_one_prefix_at_once(char_job, corpus, tmp_path, monkeypatch):
    plan = PreprocessPlan(str(corpus), str(tmp_path / "p"), char_job)
    original = run_module.encode_blocks

    def second_run_inside(*args):
        monkeypatch.setattr(run_module, "encode_blocks", original)
        with pytest.raises(DataError, match="being written by another run"):
            preprocess(plan)
        yield from original(*args)

    monkeypatch.setattr(run_module, "encode_blocks", second_run_inside)
    assert preprocess(plan).documents == 1200


class Command:
    """The real tool with two workers on an input that keeps them busy for some seconds."""

    def __init__(self, spec, corpus, folder: Path, seconds_of_work: int = 40):
        source = folder / "large.jsonl"
        source.write_bytes(corpus.read_bytes() * seconds_of_work)
        self.prefix = folder / "p"
        arguments = ["--input", source, "--output-prefix", self.prefix, "--workers", "2"]
        arguments += ["--tokenizer-type", spec.tokenizer_type, "--vocab-file", spec.vocab_file]
        self.process = subprocess.Popen(
            [sys.executable, TOOL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def workers(self) -> list[int]:
        """Ids of the two workers, waiting until both are there and have written."""
        part = Path(f"{self.prefix}_text_document.bin.part")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = [pid for pid in children(self.process.pid) if "spawn_main" in command_line(pid)]
            if len(found) == 2 and part.exists() and part.stat().st_size:
                return found
            time.sleep(0.05)
        raise AssertionError("the workers did not start")

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def outputs(self) -> list[str]:
        return [
            name for end in (".bin", ".idx") if os.path.exists(name := f"{self.prefix}_text_document{end}")
        ]


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = re.sub(r"\(.*\)", "x", status.read_text()).split()
        except OSError:
            continue
        if fields[3] == str(pid):
            found.append(int(fields[0]))
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_and_its_workers(number, status, spec, corpus, tmp_path):
    command = Command(spec, corpus, tmp_path)
    workers = command.workers()
    command.process.send_signal(number)
    code, errors = command.end()
    assert code == status and "Traceback" not in errors
    assert command.outputs() == []
    wait_until_gone(workers)


def test_a_dead_worker_is_an_error_and_not_a_hang(spec, corpus, tmp_path):
    command = Command(spec, corpus, tmp_path)
    workers = command.workers()
    os.kill(workers[0], signal.SIGKILL)
    code, errors = command.end()
    assert code == 1 and "error: a preprocessing worker died" in errors and "Traceback" not in errors
    assert command.outputs() == []
    wait_until_gone(workers)


def test_workers_do_not_outlive_a_killed_parent(spec, corpus, tmp_path):
    command = Command(spec, corpus, tmp_path)
    workers = command.workers()
    command.process.kill()
    command.end()
    wait_until_gone(workers)
    assert command.outputs() == []


def test_a_broken_line_ends_the_tool_with_one_line_that_names_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    arguments = ["--input", path, "--output-prefix", tmp_path / "p", "--tokenizer-type", "CharLevelTokenizer"]
    done = subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"{path}, line 2: not valid JSON" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl"]

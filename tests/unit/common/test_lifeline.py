"""A worker on its lifeline: it ends when the job does, whatever it is doing, and leaves nothing behind (P34)."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from megatron.common import lifeline
from megatron.launcher.coordinator import Coordinator
from megatron.launcher.job import Job
from tests.unit.launcher.jobs import ROOT, is_running, wait_for

HEAD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from megatron.common.errors import ConfigError, run_main
here = Path(sys.argv[1])
"""
SLEEP = "def main():\n    time.sleep(1000)\nrun_main(main)\n"


@pytest.fixture
def coordinator():
    opened = Coordinator(Job("a", (), {"here": [0]}, True, False, "a", 1, patience=30.0))
    yield opened
    opened.close()


def popen(coordinator: Coordinator, folder: Path, script: str) -> subprocess.Popen:
    """A worker that is to come to its coordinator."""
    environment = {"PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "1", **coordinator.environment()}
    command = [sys.executable, "-c", HEAD + script, str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def start(coordinator: Coordinator, folder: Path, script: str) -> subprocess.Popen:
    """A worker that has come to its coordinator."""
    process = popen(coordinator, folder, script)
    assert wait_for(lambda: coordinator.serve(0.02) or not coordinator.missing)
    return process


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and error output."""
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def test_a_worker_ends_itself_and_its_children_when_the_launcher_is_gone(coordinator, tmp_path):
    script = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
def main():
    (here / "child").write_text(str(child.pid))
    time.sleep(1000)
run_main(main)
"""
    process = start(coordinator, tmp_path, script)
    assert wait_for(lambda: (tmp_path / "child").exists() and bool((tmp_path / "child").read_text()))
    coordinator.close()
    code, errors = end(process)
    assert code == 1 and "lost contact with the launcher at 127.0.0.1:" in errors
    assert wait_for(lambda: not is_running(int((tmp_path / "child").read_text())))


def test_a_worker_is_ended_without_words_of_its_own(coordinator, tmp_path):
    process = start(coordinator, tmp_path, SLEEP)
    coordinator.tell_all("end")
    assert end(process) == (1, "")


@pytest.mark.parametrize(("word", "name"), [("stop", "SIGTERM"), ("later", "SIGUSR1")])
def test_a_worker_is_asked_to_stop_by_the_signal_that_it_knows(coordinator, tmp_path, word, name):
    script = f"""
def main():
    heard = signal.sigwait({{signal.{name}}})
    (here / "heard").write_text(signal.Signals(heard).name)
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.{name}}})
run_main(main)
"""
    process = start(coordinator, tmp_path, script)
    coordinator.tell_all(word)
    assert end(process) == (0, "")
    assert (tmp_path / "heard").read_text() == name
    coordinator.serve(0.2)
    assert not coordinator.in_trouble


def test_an_error_is_told_and_the_worker_waits_to_be_ended(coordinator, tmp_path):
    process = start(coordinator, tmp_path, "def main():\n    raise ConfigError('bad')\nrun_main(main)\n")
    assert wait_for(lambda: coordinator.serve(0.02) or bool(coordinator.failures))
    assert (coordinator.failures[0].message, coordinator.failures[0].mistake) == ("bad", True)
    assert process.poll() is None
    coordinator.tell_all("end")
    assert end(process) == (1, "")


def test_the_death_of_a_worker_is_seen_although_its_children_live(coordinator, tmp_path):
    script = """
def main():
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
    (here / "forked").touch()
    time.sleep(1000)
run_main(main)
"""
    process = start(coordinator, tmp_path, script)
    assert wait_for((tmp_path / "forked").exists)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    coordinator.serve(0.5)
    assert [loss.rank for loss in coordinator.losses] == [0]


def test_holding_pythons_lock_for_a_while_is_no_death(coordinator, tmp_path):
    script = "import ctypes\nrun_main(lambda: ctypes.PyDLL(None).sleep(4) and None)\n"
    process = start(coordinator, tmp_path, script)
    assert wait_for(lambda: coordinator.serve(0.1) or process.poll() is not None)
    coordinator.serve(0.2)
    assert end(process) == (0, "")
    assert not coordinator.in_trouble and not coordinator.asks


def test_a_worker_that_comes_too_late_does_not_begin(coordinator, tmp_path):
    environment = {"PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "1", **coordinator.environment()}
    coordinator.close()
    command = [sys.executable, "-c", HEAD + SLEEP, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and "nobody listens at 127.0.0.1:" in done.stderr


def test_a_worker_whose_launcher_goes_while_it_says_hello_does_not_begin(monkeypatch):
    ended = []
    ours, theirs = socket.socketpair()
    theirs.close()
    monkeypatch.setenv(lifeline.PLACES_VARIABLE, "127.0.0.1:1")
    monkeypatch.setenv(lifeline.TOKEN_VARIABLE, "x")
    monkeypatch.setattr(lifeline, "_connect", lambda places: (places[0], ours))
    monkeypatch.setattr(lifeline.os, "_exit", ended.append)
    lifeline.start()
    ours.close()
    assert ended == [1]


def test_a_worker_ends_whatever_keeps_it_from_finding_its_children(coordinator, tmp_path):
    process = start(coordinator, tmp_path, 'sys.modules["psutil"] = None\n' + SLEEP)
    coordinator.tell_all("end")
    assert end(process)[0] == 1


def test_a_worker_that_has_said_its_last_word_is_watched_no_longer(tmp_path):
    script = """
import ctypes
from megatron.common import lifeline
def main():
    lifeline.goodbye(0)
    (here / "said").touch()
    time.sleep(0.3)
    ctypes.PyDLL(None).usleep(600_000)
    os._exit(0)
run_main(main)
"""
    with closing(Coordinator(Job("a", (), {"here": [0]}, True, False, "a", 1, patience=0.3))) as coordinator:
        process = popen(coordinator, tmp_path, script)
        assert wait_for((tmp_path / "said").exists)
        coordinator.serve(0.1)  # It is welcome only now, and learns how long the launcher waits.
        assert end(process) == (0, "")


def test_what_a_worker_starts_is_not_taken_for_the_worker(coordinator, tmp_path):
    script = """
def main():
    names = [name for name in os.environ if name.startswith("NEOX_LIFELINE")]
    (here / "names").write_text(repr(names))
run_main(main)
"""
    assert end(start(coordinator, tmp_path, script)) == (0, "")
    assert (tmp_path / "names").read_text() == "[]"

"""The watch over a job on several hosts, with a starter of our own in the place of pdsh and the like."""

import os
import sys

import pytest

from megatron.common.errors import COME_AGAIN
from megatron.launcher import multi_host
from megatron.launcher.job import Job

# The starter: it leaves its rank alone as soon as there is a file `started`, and waits for it otherwise.
STARTER = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
while child.poll() is None and not pathlib.Path("started").exists():
    time.sleep(0.01)
sys.exit(child.poll() or 0)
"""
RANK = """
import os, signal, time
from pathlib import Path
from megatron.common.errors import ConfigError, run_main
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(script): the outcome of a job of one rank."""
    monkeypatch.chdir(tmp_path)

    def start(script: str):
        command = [sys.executable, "-c", STARTER, RANK + script]
        monkeypatch.setenv("LAUNCHER", str(os.getpid()))
        monkeypatch.setattr(multi_host, "starter_command", lambda job, given, folder: [*command, str(folder)])
        job = Job("train.py", (), {"localhost": [0]}, False, False, "127.0.0.1", 1)
        return multi_host.run_multi_host(job)

    return start


def test_a_rank_may_speak_its_last_word_a_while_after_its_starter_has_ended(run):
    script = """
def main():
    Path("started").touch()
    time.sleep(0.6)
    return 75
run_main(main)
"""
    assert run(script).code == COME_AGAIN


def test_the_starters_files_are_there_until_all_ranks_are(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(multi_host.tempfile, "tempdir", None)
    script = """
there = any(path.name.startswith("neox_hosts_") for path in Path.cwd().iterdir())
def main():
    while any(path.name.startswith("neox_hosts_") for path in Path.cwd().iterdir()):
        time.sleep(0.01)
    return 0 if there else 3
run_main(main)
"""
    assert run(script).code == 0


def test_an_error_after_a_schedulers_announcement_is_shown_and_nobody_starts_again(run, capfd):
    script = """
heard = []
def main():
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    os.kill(int(os.environ["LAUNCHER"]), signal.SIGUSR1)
    while not heard:
        time.sleep(0.01)
    raise OSError("the file system went away")
run_main(main)
"""
    outcome = run(script)
    assert (outcome.code, outcome.may_recover) == (1, False)
    assert capfd.readouterr().err.endswith("OSError: the file system went away\n")

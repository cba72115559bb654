"""Output that cannot go where it should."""

import os
import subprocess
import sys

import pytest

from tests.common.paths import ROOT

SCRIPT = """
from megatron.common.console import info
from megatron.common.errors import run_main
def main():
    for number in range(3):
        info(f"line {number} of a schöner text")
    return 5
run_main(main)
"""


def run(stdout, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_reader_that_has_gone_ends_the_program_in_one_line():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        done = run(stdout)
    assert done.stderr == "error: nobody reads the output any more (broken pipe): stopped\n"
    assert done.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_under_the_output_is_warned_of_once_and_the_work_goes_on():
    with open("/dev/full", "w") as stdout:
        done = run(stdout)
    assert done.stderr == (
        "warning: standard output cannot be written (No space left on device): some lines are lost\n"
    )
    assert done.returncode == 5


def test_a_terminal_that_knows_fewer_characters_shows_the_others_as_numbers():
    done = run(subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert done.stdout.splitlines()[0] == "line 0 of a sch\\xf6ner text"
    assert (done.stderr, done.returncode) == ("", 5)

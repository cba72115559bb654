import io
import os
import subprocess
import sys

import pytest

from megatron.common.tee import Tee
from tests.common.paths import ROOT

SCRIPT = """
import sys
from megatron.common.tee import Tee
copy = Tee(sys.argv[1])
print("one")
print("two")
copy.close()
print("three")
"""


def run(file) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, file], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )


def test_output_is_copied_until_the_stream_is_given_back(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("before\n")
    assert run(path).stdout == "one\ntwo\nthree\n"
    assert path.read_text() == "before\none\ntwo\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_ends_the_copy_with_a_warning_and_not_the_program():
    done = run("/dev/full")
    warning = "warning: /dev/full cannot be written (No space left on device): nothing more is copied to it"
    assert done.stdout.splitlines() == ["one", warning, "two", "three"] and done.stderr == ""


def test_a_terminal_that_has_gone_does_not_take_the_copy_along(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    copy = Tee(str(tmp_path / "log.txt"))
    with pytest.raises(BrokenPipeError):
        copy.write("one\n")
    copy.close()
    assert (tmp_path / "log.txt").read_text() == "one\n"

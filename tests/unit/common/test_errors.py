import os
import signal
import subprocess
import sys

import pytest

from megatron.common.errors import ConfigError
from tests.unit.launcher.jobs import ROOT

SCRIPT = """
from megatron.common.errors import ConfigError, run_main
def main():
    {body}
run_main(main)
"""


def start(body: str, **environment) -> subprocess.Popen:
    """An entry script whose main has this body."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("body", "code"), [("pass", 0), ("return 3", 3), ("raise KeyboardInterrupt", 130)])
def test_the_exit_code_is_mains(body, code):
    process = start(body)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == code


def test_a_script_that_has_nothing_to_save_leaves_when_its_time_is_announced_to_be_over():
    process = start('print("up", flush=True); __import__("time").sleep(1000)', RANK="0", WORLD_SIZE="2")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75


def test_a_users_mistake_is_one_line_and_a_defect_has_its_traceback():
    process = start('raise ConfigError("seed=0 must be above 0")')
    assert process.communicate(timeout=30)[1] == "error: seed=0 must be above 0\n" and process.returncode == 1
    error = start('raise ValueError("odd")', RANK="2", WORLD_SIZE="4").communicate(timeout=30)[1]
    assert error.startswith("Traceback") and error.endswith("error: rank 2: ValueError: odd\n")


def test_several_problems_are_listed_together():
    assert str(ConfigError(["one", "two"])) == "2 problems in the configuration:\n  - one\n  - two"
    assert str(ConfigError("one")) == "one" and isinstance(ConfigError("one"), ValueError)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            'OSError(28, "No space left on device", "/full/file")',
            "/full/file: No space left on device; free some",
        ),
        ('PermissionError(13, "Permission denied", "/x")', "/x: Permission denied; change the permissions"),
        (
            'type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 2 GiB.\\nMore")',
            "out of memory (CUDA out of memory. Tried 2 GiB.): lower train_micro_batch_size_per_gpu",
        ),
    ],
)
def test_a_fault_of_the_outside_world_is_one_line_with_advice(raised, told):
    process = start(f"raise {raised}")
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and len(error.splitlines()) == 1
    assert error.startswith(f"error: {told}")

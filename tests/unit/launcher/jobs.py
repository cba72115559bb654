"""Local jobs of trivial scripts, started as a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.common.paths import ROOT

PATIENCE_SECONDS = 30
DRIVER = """
import sys
from megatron.launcher import Job, run_local
hosts = {{"localhost": list(range({size}))}}
job = Job({script!r}, {arguments!r}, hosts, True, False, "127.0.0.1", 29500, {conversation}, patience={patience})
sys.exit(run_local(job).code)
"""
# A worker that fails as the entry scripts do.
WORKER_HEAD = """
import os, signal, sys, time
from pathlib import Path
from megatron.common.errors import ConfigError, run_main
rank = int(os.environ["RANK"])
here = Path(__file__).parent
"""


def start(
    folder: Path,
    script: str,
    size: int = 2,
    arguments: tuple[str, ...] = (),
    conversation: bool = False,
    patience: float = 0.0,
) -> subprocess.Popen:
    """Start the launcher on a worker script; it waits `patience` seconds for progress, 0 for as long as it takes."""
    path = folder / "worker.py"
    path.write_text(WORKER_HEAD + script)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(ROOT)
    driver = DRIVER.format(
        script=str(path), arguments=arguments, size=size, conversation=conversation, patience=patience
    )
    return subprocess.Popen(
        [sys.executable, "-c", driver],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, output and error output of a launcher."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, err


def run(folder: Path, script: str, size: int = 2, arguments: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Start a job and wait for its end."""
    return finish(start(folder, script, size, arguments))


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true in reasonable time."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def worker_pids(folder: Path, size: int = 2) -> list[int]:
    """Process ids that the workers have written to pid_RANK, once all have."""
    files = [folder / f"pid_{rank}" for rank in range(size)]
    assert wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]

"""Jobs on several hosts: the program that starts their processes is started here and waited for."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from megatron.common.console import print_rank_0
from megatron.launcher.exports import exports
from megatron.launcher.failures import exit_code
from megatron.launcher.job import Job
from megatron.launcher.jsrun import jsrun_command
from megatron.launcher.local import die_with_parent

# Where the starter finds this package, from whatever folder the user types.
_PROJECT = Path(__file__).resolve().parents[2]
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_multi_host(job: Job, extra: Mapping[str, str] | None = None) -> int:
    """Run a job on several hosts to its end.

    Args: extra: further environment variables of the processes.
    Returns: the exit code of the program behind `launcher`, 128 + signal for one killed by a signal.
    Raises: LaunchError for a bad .deepspeed_env.
    """
    given = exports(job) | (extra or {})
    with tempfile.TemporaryDirectory(prefix="neox_hosts_") as folder:
        process = subprocess.Popen(
            starter_command(job, given, Path(folder)),
            # A scheduler's own starter carries this whole environment to the hosts.
            env={**os.environ, **given, "PYTHONPATH": f"{_PROJECT}{os.pathsep}{given['PYTHONPATH']}"},
            # Ctrl-C reaches us alone, who pass it on.
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid()),
        )
        return _wait(process)


def starter_command(job: Job, given: Mapping[str, str], folder: Path) -> list[str]:
    """What to run here so that the job's processes run there.

    DeepSpeed's command lines are made by a process of their own, which then becomes the command: DeepSpeed brings torch
    along, which takes seconds to import.

    Args: given: environment variables of the processes; folder: takes the files that the command line names.
    """
    if job.launcher == "jsrun":
        meeting = {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}
        return jsrun_command(job, {**given, **meeting}, os.environ)
    request = folder / "job.json"
    request.write_text(json.dumps({"job": asdict(job), "exports": dict(given)}), encoding="utf-8")
    return [sys.executable, "-m", "megatron.launcher.host_commands", str(request)]


def _wait(process: subprocess.Popen) -> int:
    """Until the program ends; what would end us ends it."""

    def forward(number: int, frame: object) -> None:
        print_rank_0(f"{signal.Signals(number).name}: ending the processes of all hosts")
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    restore = _handle(forward)
    try:
        return exit_code(process.wait())
    finally:
        restore()


def _handle(handler: Callable[[int, object], None]) -> Callable[[], None]:
    previous = {number: signal.signal(number, handler) for number in _FORWARDED}

    def restore() -> None:
        for number, before in previous.items():
            signal.signal(number, before)

    return restore

"""Starting a script on every device of a job: this machine by ourselves, several machines through DeepSpeed."""

from megatron.launcher.failures import Outcome
from megatron.launcher.job import Job, check, resolve
from megatron.launcher.local import run_local
from megatron.launcher.multi_host import run_multi_host
from megatron.launcher.preflight import run_preflight
from megatron.launcher.restarts import run_with_restarts

__all__ = [
    "Job",
    "check",
    "resolve",
    "run",
    "run_local",
    "run_multi_host",
    "run_preflight",
    "run_with_restarts",
]


def run(job: Job) -> Outcome:
    """Run a job to its end, on this machine or on several."""
    return run_local(job) if job.is_local else run_multi_host(job)

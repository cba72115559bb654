"""Starting a script on every device of a job: this machine by ourselves, several machines through DeepSpeed."""

from megatron.launcher.job import Job, check, resolve
from megatron.launcher.local import run_local
from megatron.launcher.multi_host import run_multi_host
from megatron.launcher.restarts import run_with_restarts

__all__ = ["Job", "check", "resolve", "run_local", "run_multi_host", "run_with_restarts"]

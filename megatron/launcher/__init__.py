"""Starting a script on every device of a job: this machine by ourselves, several machines through DeepSpeed."""

from megatron.launcher.job import Job, check, resolve
from megatron.launcher.local import run_local
from megatron.launcher.multi_host import run_multi_host

__all__ = ["Job", "check", "resolve", "run_local", "run_multi_host"]

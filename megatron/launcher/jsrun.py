"""IBM's jsrun, which starts processes within an LSF allocation: one resource set for each process."""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from megatron.common import lsf
from megatron.common.errors import LaunchError
from megatron.common.hosts import Pool

# Options of jsrun that a user may set through launcher_args in place of ours, by ours.
_SPELLINGS = {
    "-c": ("-c", "--cpu_per_rs"),
    "-g": ("-g", "--gpu_per_rs"),
    "-d": ("-d", "--launch_distribution"),
    "-b": ("-b", "--bind"),
}


def jsrun_command(job: Any, exports: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """The command line that starts a job.

    A resource set holds one process, its GPU and its share of the cores. Sets are packed host by host, so that ranks
    count as in every other launcher. jsrun places them itself, on the hosts of the allocation.

    Args: job: a Job; exports: environment variables of the processes; environment: LSF's variables.
    """
    per_host = len(next(iter(job.hosts.values())))
    cores = _cores_per_host(environment)
    ours = {
        "-c": str(max(1, cores // per_host)),
        "-g": "1" if job.on_gpus else "0",
        "-d": "packed",
        "-b": "rs",
    }
    given = shlex.split(job.launcher_args)
    command = ["jsrun", "-n", str(job.size), "-r", str(per_host), "-a", "1"]
    for option, value in ours.items():
        if not any(word.split("=")[0] in _SPELLINGS[option] for word in given):
            command += [option, value]
    command += given
    for name, value in exports.items():
        command += ["-E", f"{name}={value}"]
    return [*command, sys.executable, "-u", job.script, *job.arguments]


def check_allocation(hosts: Pool, environment: Mapping[str, str] = os.environ) -> None:
    """Raises: LaunchError for hosts on which jsrun would not start the processes."""
    allocated = list(lsf.cores_by_host(environment))
    if not allocated:
        raise LaunchError(
            "launcher=jsrun, but there is no LSF allocation here: submit the command with bsub, or type it within one"
        )
    if list(hosts) != allocated[: len(hosts)]:
        raise LaunchError(
            f"launcher=jsrun fills the hosts of the allocation in their order ({', '.join(allocated[:9])}) and cannot "
            f"choose {', '.join(list(hosts)[:9])}: leave out hostfile, include and exclude, or set num_nodes"
        )


def _cores_per_host(environment: Mapping[str, str]) -> int:
    """Cores that jsrun may use on each host; without an allocation to ask, those of this machine."""
    return min(lsf.cores_by_host(environment).values(), default=os.cpu_count() or 1)

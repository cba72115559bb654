"""IBM's jsrun, which starts processes within an LSF allocation: one resource set for each process."""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

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
    per_host = len(next(iter(job.hosts.values()))) if job.hosts else job.size
    cores = cores_per_host(environment)
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


def allocated_hosts(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Cores by compute host of the LSF allocation; {} outside of one.

    LSF lists the host that runs the job's script first, with one slot; nothing computes there.
    """
    words = environment.get("LSB_MCPU_HOSTS", "").split()
    hosts = {name: int(cores) for name, cores in zip(words[::2], words[1::2], strict=False)}
    first = next(iter(hosts), None)
    if first is not None and len(hosts) > 1 and hosts[first] == 1:
        del hosts[first]
    return hosts


def cores_per_host(environment: Mapping[str, str]) -> int:
    """Cores that jsrun may use on each host; without an allocation to ask, those of this machine."""
    return min(allocated_hosts(environment).values(), default=os.cpu_count() or 1)

"""What LSF's variables say of a job: its hosts and their cores."""

import os
from collections.abc import Mapping

from megatron.common.errors import LaunchError


def cores_by_host(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Cores of each compute host of the allocation that this process stands in; {} outside of one.

    LSF lists the host that runs the job's script first, with one core; nothing computes there.
    """
    words = environment.get("LSB_MCPU_HOSTS", "").split()
    hosts = {
        name: int(cores) for name, cores in zip(words[::2], words[1::2], strict=False) if cores.isdecimal()
    }
    first = next(iter(hosts), None)
    if first is not None and len(hosts) > 1 and hosts[first] == 1:
        del hosts[first]
    return hosts


def allocation(wanted: int | None = None, environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Slots by host of the allocation, as many as are `wanted`; {} outside of one.

    Raises: LaunchError without that number, which LSF's variables do not tell.
    """
    hosts = cores_by_host(environment)
    if hosts and not wanted:
        raise LaunchError(
            "launcher=jsrun: LSF does not say how many GPUs a host has; set num_gpus, or a hostfile"
        )
    return dict.fromkeys(hosts, wanted or 0)

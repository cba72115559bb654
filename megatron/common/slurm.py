"""What Slurm's variables say of a job: its hosts and slots, and where its processes meet.

Lists come in Slurm's shorthand: hosts as `gpu[01-03,7],login`, numbers by host as `8(x3),4`.
"""

import itertools
import os
import re
from collections.abc import Mapping

from megatron.common.errors import LaunchError

# The ports of jobs that share a host differ as their numbers do; these ones are below those that systems give away.
_FIRST_PORT, _PORTS = 20_000, 10_000


def allocation(wanted: int | None = None, environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Slots by host of the allocation that this process stands in, in the order of the ranks; {} outside of one.

    A host has as many slots as GPUs were asked for; where none were, as are `wanted`, else as tasks were asked for.

    Raises: LaunchError for variables that are not Slurm's.
    """
    hosts = expand_hosts(environment.get("SLURM_JOB_NODELIST", ""))
    if not hosts:
        return {}
    gpus = _gpus(environment)
    if gpus or wanted:
        return dict.fromkeys(hosts, gpus or wanted or 1)
    return dict(zip(hosts, _tasks(environment, len(hosts)), strict=True))


def cores_per_host(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Cores that the allocation has on each of its hosts; {} where Slurm does not say."""
    hosts = expand_hosts(environment.get("SLURM_JOB_NODELIST", ""))
    cores = _numbers("SLURM_JOB_CPUS_PER_NODE", environment)
    return dict(zip(hosts, cores, strict=True)) if len(hosts) == len(cores) else {}


def meeting_place(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT of the processes that srun has started: the host of rank 0, and a port of the job.

    {} for a process that srun has not started.

    Raises: LaunchError for a list of hosts that is none.
    """
    hosts = expand_hosts(environment.get("SLURM_STEP_NODELIST", ""))
    port = meeting_port(environment)
    return {"MASTER_ADDR": hosts[0], "MASTER_PORT": str(port)} if hosts and port is not None else {}


def meeting_port(environment: Mapping[str, str] = os.environ) -> int | None:
    """A port that other jobs on the same hosts do not take; None outside of a job."""
    number = environment.get("SLURM_JOB_ID", "")
    return _FIRST_PORT + int(number) % _PORTS if number.isdecimal() else None


def expand_hosts(text: str) -> list[str]:
    """`gpu[01-02],login -> gpu01, gpu02, login`.

    Raises: LaunchError.
    """
    # A comma separates hosts, or ranges where it stands in brackets.
    entries = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if ",".join(entries) != text:
        raise LaunchError(f"{text!r} is not a list of hosts as Slurm writes it, such as gpu[01-03,7],login")
    hosts = []
    for entry in entries:
        # The odd parts stood in brackets.
        parts = re.split(r"\[([^\[\]]*)\]", entry)
        choices = [_range(part, text) if place % 2 else [part] for place, part in enumerate(parts)]
        hosts += ["".join(words) for words in itertools.product(*choices)]
    return hosts


def expand_numbers(text: str) -> list[int]:
    """`8(x3),4 -> 8, 8, 8, 4`.

    Raises: LaunchError.
    """
    numbers = []
    for entry in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", entry)
        if match is None:
            raise LaunchError(
                f"{text!r} is not a list of numbers by host as Slurm writes it, such as 8(x3),4"
            )
        numbers += [int(match[1])] * int(match[2] or 1)
    return numbers


def _gpus(environment: Mapping[str, str]) -> int:
    """GPUs of each host: 8, a100:8, or several types."""
    told = environment.get("SLURM_GPUS_PER_NODE") or environment.get("SLURM_GPUS_ON_NODE", "")
    return sum(map(int, re.findall(r"(?:^|[:,])([0-9]+)(?=$|,)", told)))


def _tasks(environment: Mapping[str, str], count: int) -> list[int]:
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        numbers = _numbers(name, environment)
        if len(numbers) in (1, count):
            return numbers if len(numbers) == count else numbers * count
    return [1] * count


def _numbers(name: str, environment: Mapping[str, str]) -> list[int]:
    return expand_numbers(environment.get(name, ""))


def _range(text: str, whole: str) -> list[str]:
    """`01-03,7 -> 01, 02, 03, 7`; leading zeros are kept."""
    numbers = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if match is None:
            raise LaunchError(f"{whole!r} is not a list of hosts as Slurm writes it: [{text}]")
        first, last = match[1], match[2] or match[1]
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers

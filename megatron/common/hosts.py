"""The machines of a job: host files, and the include/exclude filters on machines and slots."""

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path

from megatron.common import lsf, slurm
from megatron.common.device import accelerator_count
from megatron.common.errors import LaunchError

HOSTFILE_VARIABLE = "DLTS_HOSTFILE"
# Where some clusters put the file of a job, and where DeepSpeed looks for it.
DEFAULT_HOSTFILE = "/job/hostfile"
Pool = dict[str, list[int]]
_LOWEST_PORT, _PORTS = 20_000, 12_000
_SCHEDULERS = {"slurm": slurm.allocation, "jsrun": lsf.allocation}


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Slots by host name. Lines read `NAME slots=N`; "#" starts a comment.

    Raises: LaunchError naming the line of a malformed entry or of a host given twice.
    """
    hosts: dict[str, int] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=([0-9]+)", entry)
        if match is None:
            raise LaunchError(f"{path}, line {number}: {entry!r} is not of the form NAME slots=N")
        name, slots = match[1], int(match[2])
        if name in hosts:
            raise LaunchError(f"{path}, line {number}: host {name!r} is listed twice")
        if slots == 0:
            raise LaunchError(
                f"{path}, line {number}: host {name!r} has no slots; leave it out, or give it some"
            )
        hosts[name] = slots
    if not hosts:
        raise LaunchError(f"{path}: names no host; write lines of the form NAME slots=N")
    return hosts


def parse_filter(text: str) -> dict[str, list[int] | None]:
    """`HOST[:SLOT,SLOT...][@HOST...]` as slots by host, None for all slots.

    Raises: LaunchError.
    """
    chosen: dict[str, list[int] | None] = {}
    for part in text.split("@"):
        match = re.fullmatch(r"\s*([^\s:@]+)(?::([0-9]+(?:,[0-9]+)*))?\s*", part)
        if match is None:
            raise LaunchError(f"{text!r} is not of the form HOST[:SLOT,SLOT...][@HOST...]: {part!r}")
        chosen[match[1]] = sorted({int(slot) for slot in match[2].split(",")}) if match[2] else None
    return chosen


def filter_pool(pool: Pool, include: str | None, exclude: str | None) -> Pool:
    """The slots that remain after `include` or `exclude`.

    Raises: LaunchError if both are given, if one names a host or slot that does not exist, or if nothing remains.
    """
    if include and exclude:
        raise LaunchError("include and exclude are both set; use one of them")
    if not (include or exclude):
        return pool
    option, text = ("include", include) if include else ("exclude", exclude)
    chosen: Pool = {}
    for host, slots in parse_filter(text or "").items():
        if host not in pool:
            raise LaunchError(f"{option}={text!r} names host {host!r}; known hosts: {', '.join(pool)}")
        missing = [slot for slot in slots or [] if slot not in pool[host]]
        if missing:
            raise LaunchError(
                f"{option}={text!r} names slot {missing[0]} of {host!r}, which has {len(pool[host])} slots"
            )
        chosen[host] = slots if slots is not None else pool[host]
    if include:
        # Ranks are counted in the host file's order, whatever the filter's.
        remaining = {host: chosen[host] for host in pool if host in chosen}
    else:
        remaining = {
            host: [s for s in slots if s not in chosen.get(host, [])] for host, slots in pool.items()
        }
        remaining = {host: slots for host, slots in remaining.items() if slots}
    if not remaining:
        raise LaunchError(f"{option}={text!r} leaves no slot")
    return remaining


def find_hostfile(hostfile: str | None) -> str | None:
    """The host file to use: the key's, else DLTS_HOSTFILE, else /job/hostfile; None if it does not exist."""
    path = hostfile or os.environ.get(HOSTFILE_VARIABLE) or DEFAULT_HOSTFILE
    return path if os.path.isfile(path) else None


def resource_pool(
    hostfile: str | None,
    include: str | None = None,
    exclude: str | None = None,
    num_nodes: int = -1,
    num_gpus: int | None = None,
    launcher: str | None = None,
) -> Pool:
    """Slots to use on each host; {} where neither a host file nor a filter says anything.

    Without a host file, launchers "slurm" and "jsrun" take the hosts of the allocation; otherwise the filters speak of
    this machine as "localhost".

    Raises: LaunchError.
    """
    path = find_hostfile(hostfile)
    scheduler = _SCHEDULERS.get(launcher or "") if path is None else None
    allocated = scheduler(num_gpus) if scheduler else {}
    if path is None and not allocated and not (include or exclude):
        return {}
    if path is not None or allocated:
        found = read_hostfile(path) if path is not None else allocated
        pool = {host: list(range(slots)) for host, slots in found.items()}
    else:
        pool = {"localhost": list(range(local_slots(include)))}
    pool = filter_pool(pool, include, exclude)
    if num_nodes > len(pool):
        raise LaunchError(f"num_nodes={num_nodes}, but there are only {len(pool)} hosts: {', '.join(pool)}")
    if num_nodes > 0:
        pool = dict(list(pool.items())[:num_nodes])
    if num_gpus and not (include or exclude):
        pool = {host: _first(host, slots, num_gpus) for host, slots in pool.items()}
    return pool


def local_slots(include: str | None = None) -> int:
    """Devices of this machine. Without any, slots are plain processes and as many as `include` names exist."""
    count = accelerator_count()
    if count or not include:
        return count or 1
    named = parse_filter(include).get("localhost") or [0]
    return max(named) + 1


def _first(host: str, slots: list[int], count: int) -> list[int]:
    if count > len(slots):
        raise LaunchError(f"num_gpus={count}, but host {host!r} has {len(slots)} slots")
    return slots[:count]


def free_port() -> int:
    """A port of this machine that nobody listens on at the moment. It lies below those that systems give to outgoing
    connections, one of which would take it now and then before its user does."""
    with socket.socket() as probe:
        for _ in range(_PORTS):
            with contextlib.suppress(OSError):
                probe.bind(("", _LOWEST_PORT + secrets.randbelow(_PORTS)))
                break
        else:
            probe.bind(("", 0))
        return probe.getsockname()[1]

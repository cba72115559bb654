"""What the processes of a failed job left behind, told once.

A failing worker tells its error over its lifeline (megatron/common/lifeline.py). The first failure is the cause; most
of the others are its consequences (a closed connection to the rank that went first).
"""

import signal
from dataclasses import dataclass

_LONGEST_CONSEQUENCE = 200
_MOST_NAMED = 8


@dataclass(frozen=True)
class Failure:
    """One rank's error. trace is None for a user's mistake; host: None on one machine; mistake: another start would
    meet it again."""

    rank: int
    message: str
    trace: str | None
    host: str | None = None
    mistake: bool = False


@dataclass(frozen=True)
class Loss:
    """A rank that ended without an error of its own. reason: a verb and what follows."""

    rank: int
    host: str | None
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How a job has ended. code: for the shell; may_recover: another start may come further."""

    code: int
    may_recover: bool = False


def exit_code(status: int) -> int:
    """A process's return code as a shell would report it: 128 + signal for one killed by a signal."""
    return 128 - status if status < 0 else status


def death(rank: int, status: int) -> Loss:
    """What a process that left no error of its own ended with."""
    if status >= 0:
        return Loss(rank, None, f"ended with exit code {status}")
    name = signal.Signals(-status).name
    hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
    return Loss(rank, None, f"was killed by {name}{hint}")


def report(failures: list[Failure], losses: list[Loss], size: int) -> str:
    """The text to show for a failed job; ranks are named where not all of them say the same.

    Args: failures: in the order of time; losses: of ranks that went without leaving an error, the cause if there are
    any; size: number of processes of the job.
    """
    lines = []
    causes: list[Failure] = []
    if losses:
        first = losses[0]
        alike = [(loss.rank, loss.host) for loss in losses[1:] if loss.reason == first.reason]
        also = f" (the same of {name_ranks(alike)})" if alike else ""
        lines.append(f"error: {name_rank(first.rank, first.host)} {first.reason}{also}")
    else:
        cause = failures[0]
        causes = [failure for failure in failures if failure.message == cause.message]
        where = f"{_where(causes)}: " if len(causes) < size else ""
        lines.append(f"{cause.trace or ''}error: {where}{cause.message}")
    told = {failure.message for failure in causes}
    for failure in failures:
        if failure.message not in told:
            told.add(failure.message)
            same = [other for other in failures if other.message == failure.message]
            lines.append(f"then {_where(same)}: {_shortened(failure)}")
    return "\n".join(lines)


def name_rank(rank: int, host: str | None) -> str:
    """`rank 3 on node2`, without a host on one machine."""
    return f"rank {rank}" if host is None else f"rank {rank} on {host}"


def name_ranks(places: list[tuple[int, str | None]]) -> str:
    """`rank 0 on node1, ranks 2, 3 on node2`; their number where there are many."""
    if len(places) > _MOST_NAMED:
        return f"{len(places)} ranks"
    hosts: dict[str | None, list[int]] = {}
    for rank, host in sorted(places, key=lambda place: place[0]):
        hosts.setdefault(host, []).append(rank)
    parts = []
    for host, ranks in hosts.items():
        plural = "s" if len(ranks) > 1 else ""
        where = f" on {host}" if host is not None else ""
        parts.append(f"rank{plural} {', '.join(map(str, ranks))}{where}")
    return ", ".join(parts)


def _where(same: list[Failure]) -> str:
    return name_ranks([(failure.rank, failure.host) for failure in same])


def _shortened(failure: Failure) -> str:
    if failure.trace is None or len(failure.message) <= _LONGEST_CONSEQUENCE:
        return failure.message.splitlines()[0] if failure.trace else failure.message
    return failure.message.splitlines()[0][:_LONGEST_CONSEQUENCE] + " ..."

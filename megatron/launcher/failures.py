"""What the processes of a failed job left behind, told once.

A failing worker writes rank_N.json into the folder NEOX_ERROR_DIR names (megatron/common/errors.py). The first failure
is the cause; most of the others are its consequences (a closed connection to the rank that went first).
"""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

_LONGEST_CONSEQUENCE = 200


@dataclass(frozen=True)
class Failure:
    """One rank's error. trace is None for a user's mistake; time: when it was written, seconds."""

    rank: int
    message: str
    trace: str | None
    time: float


def read_failures(folder: Path) -> list[Failure]:
    """All errors left in the folder, first one first."""
    found = []
    for path in folder.glob("rank_*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # The rank was killed while it wrote.
        found.append(Failure(record["rank"], record["message"], record["traceback"], path.stat().st_mtime))
    return sorted(found, key=lambda failure: (failure.time, failure.rank))


def exit_code(status: int) -> int:
    """A process's return code as a shell would report it: 128 + signal for one killed by a signal."""
    return 128 - status if status < 0 else status


def describe_death(rank: int, status: int) -> str:
    """Why a process ended that left no error of its own."""
    if status >= 0:
        return f"rank {rank} ended with exit code {status}"
    name = signal.Signals(-status).name
    hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
    return f"rank {rank} was killed by {name}{hint}"


def report(failures: list[Failure], died: tuple[int, int] | None, size: int) -> str:
    """The text to show for a failed job; ranks are named where not all of them say the same.

    Args: failures: from read_failures; died: (rank, status) of a process that went without leaving an error; size:
    number of processes of the job.
    """
    lines = []
    if died is not None and (died[1] < 0 or not failures):
        lines.append(f"error: {describe_death(*died)}")
        causes: list[Failure] = []
    else:
        first = failures[0]
        causes = [failure for failure in failures if failure.message == first.message]
        where = f"{_where(causes)}: " if len(causes) < size else ""
        lines.append(f"{first.trace or ''}error: {where}{first.message}")
    told = {failure.message for failure in causes}
    for failure in failures:
        if failure.message not in told:
            told.add(failure.message)
            same = [other for other in failures if other.message == failure.message]
            lines.append(f"then {_where(same)}: {_shortened(failure)}")
    return "\n".join(lines)


def _where(same: list[Failure]) -> str:
    ranks = sorted(failure.rank for failure in same)
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks))}" if len(ranks) < 9 else f"{len(ranks)} ranks"


def _shortened(failure: Failure) -> str:
    if failure.trace is None or len(failure.message) <= _LONGEST_CONSEQUENCE:
        return failure.message.splitlines()[0] if failure.trace else failure.message
    return failure.message.splitlines()[0][:_LONGEST_CONSEQUENCE] + " ..."

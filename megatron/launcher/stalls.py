"""What to say about a job in which nothing moves any more."""

from dataclasses import dataclass

from megatron.launcher.failures import name_rank, name_ranks

_MOST_STACKS = 4


@dataclass(frozen=True)
class Standing:
    """Where a rank stands. host: None on one machine; quiet: seconds without progress; stack: Python's, None if
    unknown; waits: the call in which it waits for other ranks, None if it does something else; is_frozen: C code
    has kept all its threads from running."""

    rank: int
    host: str | None
    operation: str
    step: int | None
    quiet: float
    stack: str | None
    waits: str | None
    has_started: bool = True
    is_frozen: bool = False

    @property
    def place(self) -> str:
        step = "" if self.step is None else f"iteration {self.step}, "
        return f"{step}{self.operation}" if self.has_started else "not started yet"


def describe(standings: list[Standing], patience: float) -> str:
    """A line that names the ranks that do not go on and those that wait for them, and the stacks of the former."""
    slow = slowest(standings)
    line = f"nothing was finished for {patience:g} s (watchdog_timeout): "
    line += "; ".join(
        f"{name_rank(one.rank, one.host)} does not go on ({one.place})" for one in slow[:_MOST_STACKS]
    )
    if len(slow) > _MOST_STACKS:
        line += f"; nor do {len(slow) - _MOST_STACKS} others"
    waiting = [one for one in standings if one not in slow]
    if waiting:
        calls = sorted({f"in {one.waits}" if one.waits else f"({one.place})" for one in waiting})
        verb = "waits" if len(waiting) == 1 else "wait"
        line += f"; {name_ranks([(one.rank, one.host) for one in waiting])} {verb} {', '.join(calls[:3])}"
    return line + "".join(_stack(one) for one in slow[:_MOST_STACKS])


def slowest(standings: list[Standing]) -> list[Standing]:
    """Those for whom the others wait: who has not started, who is frozen, who is in no call that waits, who is behind.

    All of them where they do not differ.
    """
    for is_slow in (
        lambda one: not one.has_started,
        lambda one: one.is_frozen,
        lambda one: one.waits is None,
        lambda one: (one.step or 0) < max(other.step or 0 for other in standings),
    ):
        found = [one for one in standings if is_slow(one)]
        if found and len(found) < len(standings):
            return found
    return standings


def _stack(one: Standing) -> str:
    if not one.has_started:
        return ""
    head = f"\n{name_rank(one.rank, one.host)}, {one.place}, without progress for {one.quiet:.0f} s:\n"
    return head + (one.stack.rstrip() if one.stack else "  (it does not answer)")

"""What this process is doing: told by those who do it, read by its lifeline when nothing moves any more."""

import time
from dataclasses import dataclass


@dataclass
class Activity:
    """operation, step: the work in hand; part: where in it; beats: how much has been done, in no unit; since: when that
    count last rose, monotonic seconds."""

    operation: str = "starting"
    step: int | None = None
    part: str = ""
    beats: int = 0
    since: float = 0.0


_now = Activity(since=time.monotonic())


def beat(operation: str, step: int | None = None) -> None:
    """Something is done, and this comes next. Whatever may take minutes calls it, between its parts too."""
    _now.operation, _now.step, _now.part = operation, step, ""
    pulse()


def pulse() -> None:
    """The work in hand goes on."""
    _now.beats += 1
    _now.since = time.monotonic()


def enter(part: str) -> None:
    """A part of the work in hand begins. This is no progress by itself."""
    _now.part = part


def leave(part: str) -> None:
    """That part is over, unless another one has begun since."""
    if _now.part == part:
        _now.part = ""


def current() -> Activity:
    """The one of this process."""
    return _now

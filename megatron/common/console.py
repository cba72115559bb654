"""All the program says to people: plain messages and progress. The only module that writes to the terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from megatron.common import activity
from megatron.common.errors import NeoXError

PLAIN_INTERVAL_SECONDS = 10.0
_told: set[int | None] = set()  # faults of standard output that have been warned of
_when_unread: Callable[[], None] | None = None


def _rank() -> int:
    # torch.distributed is asked only if somebody has imported it: the console must not load torch by itself.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK") or 0)


def print_rank_0(*message) -> None:
    """Print on global rank 0 only, flushed.

    Raises: NeoXError when nobody reads the output any more.
    """
    if _rank() == 0:
        write(" ".join(map(str, message)) + "\n")


def info(message: str) -> None:
    """Say something on rank 0."""
    print_rank_0(message)


def write(text: str) -> None:
    """Show text on rank 0 as it is, without a line break, at once."""
    if not text or _rank() != 0:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        if _when_unread is None:
            raise NeoXError("nobody reads the output any more (broken pipe): stopped") from None
        _when_unread()
    except OSError as problem:
        # A full disk under a log must not end the work that it is about.
        if problem.errno not in _told:
            _told.add(problem.errno)
            warn(f"standard output cannot be written ({problem.strerror}): some lines are lost")


def when_unread(action: Callable[[], None] | None) -> None:
    """What to do when nobody reads the output any more; None: end the program with an error.

    Ctrl-C ends all of `deepy.py train.py ... | tee log`, and tee first, but the training is to save before it goes.
    """
    global _when_unread
    _when_unread = action


def warn(message: str) -> None:
    """Warn once per call on rank 0, on standard error."""
    if _rank() == 0:
        with contextlib.suppress(OSError):
            print(f"warning: {message}", file=sys.stderr, flush=True)


def warn_of_rank(message: str) -> None:
    """Warn on standard error of what concerns this rank, whichever it is."""
    with contextlib.suppress(OSError):
        print(f"warning: rank {_rank()}: {message}", file=sys.stderr, flush=True)


def error(message: str) -> None:
    """Report an error on standard error, from any rank."""
    write_errors(f"error: {message}\n")


def write_errors(text: str) -> None:
    """Show text on standard error as it is, from any rank. Whoever has something to do after it gets on with that,
    although nobody may read it any more."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def human_bytes(count: float) -> str:
    """`1536 -> "1.5 kB"`, decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def human_duration(seconds: float) -> str:
    """`3725 -> "1:02:05"`; unknown (negative or not finite) -> `"?"`."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class Progress:
    """Progress of long work: a bar on a terminal, a plain line every few seconds in a log; with rate and time left.

    Args: total: amount of work in `unit`s, None if unknown; unit: its name, "B" is shown as bytes; label: what is done.
    """

    def __init__(self, total: float | None, unit: str, label: str, enabled: bool = True):
        self.total, self.unit, self.label, self.enabled = total, unit, label, enabled
        self.done = 0.0
        self._shown: float | None = None  # amount in the last plain line
        self._start = self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self.enabled and sys.stderr.isatty():
            from tqdm import tqdm

            in_bytes = self.unit == "B"
            self._bar = tqdm(
                total=self.total, unit=self.unit, desc=self.label, unit_scale=in_bytes, dynamic_ncols=True
            )
        return self

    def __exit__(self, kind, value, trace) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.enabled and kind is None and self._shown != self.done:
            self._line()

    def update(self, amount: float, note: str = "") -> None:
        """Add `amount` of finished work; `note` is shown after the numbers."""
        self.done += amount
        activity.pulse()
        if not self.enabled:
            return
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._last >= PLAIN_INTERVAL_SECONDS:
            self._line(note)

    def _line(self, note: str = "") -> None:
        self._last, self._shown = time.monotonic(), self.done
        rate = self.done / max(self._last - self._start, 1e-9)
        parts = [self._amount(self.done), f"{self._amount(rate)}/s"]
        if self.total:
            left = (self.total - self.done) / rate if rate > 0 else float("inf")
            parts[0] += f" of {self._amount(self.total)} ({100 * self.done / self.total:.0f} %)"
            parts.append(f"{human_duration(left)} left")
        parts += [note] if note else []
        write_errors(f"{self.label}: {', '.join(parts)}\n")

    def _amount(self, value: float) -> str:
        if self.unit == "B":
            return human_bytes(value)
        return (
            f"{value:,.0f} {self.unit}" if value >= 100 or value == int(value) else f"{value:.1f} {self.unit}"
        )

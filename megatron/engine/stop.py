"""Leaving a run politely: a signal finishes the step, saves and exits, on all ranks at the same iteration."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import torch

from megatron.common import console

# What signals ask for. Where the ranks have heard different things the larger number counts.
_GO_ON_LATER, _STOP = 1, 2
# Launchers that kill when they are asked to stop (srun, mpirun) still pass SIGUSR1 and SIGUSR2 on as they are.
_WISHES = {
    "SIGUSR1": _GO_ON_LATER,
    "SIGUSR2": _STOP,
    "SIGTERM": _STOP,
    "SIGINT": _STOP,
}
# A scheduler that ends a job tells its processes and its launcher, which tells the processes.
_ECHO_SECONDS = 5.0


class StopSignal:
    """Turns a signal that any rank receives into one common decision to stop.

    SIGTERM, SIGINT and SIGUSR2 end the run, and so does the end of whoever has read the output. SIGUSR1, with which
    schedulers announce the end of a job's time, ends it so that another start goes on. Once the decision is made the
    signals stay noted, so that saving is not interrupted. Who says SIGINT twice, or SIGTERM again after a while, is
    obeyed at once.

    The wish is reduced over all ranks on the host side without waiting: `poll` starts the reduction of this iteration
    and returns the result of the previous one, so the ranks agree and the device queue is never drained for it.

    Attributes: to_be_continued: whether the decision is that another start goes on.
    """

    def __init__(self):
        self.to_be_continued = False
        self._decision = 0
        self._wish = 0
        self._heard: dict[int, float] = {}
        self._speaks = torch.distributed.get_rank() == 0
        self._pending = None
        self._previous = {}
        self._group = None
        if torch.distributed.get_backend() != "gloo":
            self._group = torch.distributed.new_group(backend="gloo")

    def __enter__(self) -> "StopSignal":
        for name in _WISHES:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._previous[number] = signal.signal(number, self._note)
        console.when_unread(lambda: self._wants(_STOP))
        return self

    def __exit__(self, kind, value, trace) -> None:
        if self._pending is not None and kind is None:
            self._pending[1].wait()
        if self._decision:
            return
        console.when_unread(None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        _obey_insistence(number, self._heard)
        if self._speaks and self._wish == 0:
            with contextlib.suppress(OSError):
                os.write(2, b"signal received: finishing this step, then saving\n")
        self._wants(_WISHES[signal.Signals(number).name])

    def _wants(self, wish: int) -> None:
        self._wish = max(self._wish, wish)

    def poll(self) -> bool:
        """True on every rank in the iteration after the one in which some rank received a signal."""
        wish = torch.tensor([self._wish], dtype=torch.int32)
        work = torch.distributed.all_reduce(
            wish, op=torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        previous, self._pending = self._pending, (wish, work)
        if previous is None:
            return False
        previous[1].wait()
        self._decision = int(previous[0].item())
        self.to_be_continued = self._decision == _GO_ON_LATER
        return self._decision > 0


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that come within the block mean behind it what they have always meant, unless somebody insists. Those
    that a StopSignal still notes are left to it."""
    heard: dict[int, float] = {}
    numbers = [getattr(signal, name) for name in _WISHES if hasattr(signal, name)]
    previous = {
        number: signal.signal(number, lambda number, frame: _obey_insistence(number, heard))
        for number in numbers
        if not isinstance(getattr(signal.getsignal(number), "__self__", None), StopSignal)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in heard:
            os.kill(os.getpid(), number)


def _obey_insistence(number: int, heard: dict[int, float]) -> None:
    """Note when a signal came first; who says it again for good, or Ctrl-C twice, is obeyed at once."""
    since = time.monotonic() - heard.setdefault(number, time.monotonic())
    if number == signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
    elif number == signal.SIGTERM and since > _ECHO_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

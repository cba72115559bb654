"""Leaving a run politely: SIGTERM and SIGINT finish the step, save and exit, on all ranks at the same iteration."""

import os
import signal

import torch


class StopSignal:
    """Turns the first SIGTERM or SIGINT of any rank into one common decision to stop.

    The wish is reduced over all ranks on the host side without waiting: `poll` starts the reduction of this iteration
    and returns the result of the previous one, so the ranks agree and the device queue is never drained for it.
    """

    def __init__(self):
        self.received: int | None = None
        self._speaks = torch.distributed.get_rank() == 0
        self._pending = None
        self._previous = {}
        self._group = None
        if torch.distributed.get_backend() != "gloo":
            self._group = torch.distributed.new_group(backend="gloo")

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind, value, trace) -> None:
        if self._pending is not None and kind is None:
            self._pending[1].wait()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.received = number
        # A second signal acts at once, in case the step itself hangs.
        signal.signal(number, signal.SIG_DFL)
        if self._speaks:
            os.write(
                2, b"signal received: finishing this step, then saving (send it again to stop at once)\n"
            )

    def poll(self) -> bool:
        """True on every rank in the iteration after the one in which some rank received a signal."""
        wish = torch.tensor([0 if self.received is None else 1], dtype=torch.int32)
        work = torch.distributed.all_reduce(
            wish, op=torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        previous, self._pending = self._pending, (wish, work)
        if previous is None:
            return False
        previous[1].wait()
        return bool(previous[0].item())

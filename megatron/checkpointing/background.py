"""Work beside the training: a thread on every rank, and the common knowledge that all of them are done."""

import threading
from collections.abc import Callable
from typing import Any

import torch


def host_group():
    """A process group of all ranks for small messages on the host, which no device has to be waited for.

    Collective.
    """
    return None if torch.distributed.get_backend() == "gloo" else torch.distributed.new_group(backend="gloo")


class Job:
    """Work of this rank on a thread of its own, which must not take part in any collective operation.

    Attributes: result: what the work returned, once the job has finished.
    """

    def __init__(self, work: Callable[[], Any], group=None):
        self.result: Any = None
        self._group, self._vote = group, None
        self._defect: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
        except Exception as error:
            self._defect = error

    def finished(self, wait: bool = False) -> bool:
        """Whether the jobs of all ranks are done, the same answer on all of them; collective.

        Args: wait: until they are. Otherwise the answer is that of the call before, whose messages have meanwhile
        arrived, so that nobody waits.
        Raises: what the work raised.
        """
        if wait:
            self._thread.join()
        if self._vote is None and not wait:
            self._ask()
            return False
        if self._vote is not None:
            running, messages = self._vote
            messages.wait()
            if not wait and running.item():
                self._ask()
                return False
            self._vote = None
        self._thread.join()
        if self._defect is not None:
            raise self._defect
        return True

    def _ask(self) -> None:
        running = torch.tensor([int(self._thread.is_alive())], dtype=torch.int32)
        work = torch.distributed.all_reduce(
            running, op=torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._vote = running, work

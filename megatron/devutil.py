"""Small helps for people who work on the program: how long do the calls of a method take?"""

import atexit
from functools import wraps
from typing import Any

from megatron.common.console import print_rank_0
from megatron.common.timers import Timer


class Metric:
    """Times of something that happens again and again. Args: label: what is measured."""

    def __init__(self, label: str):
        self.label, self.count = label, 0
        self._timer = Timer(label)

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()
        self.count += 1

    @property
    def total(self) -> float:
        """Seconds in all, for which the device is waited for."""
        return self._timer.elapsed(reset=False)

    @property
    def mean(self) -> float:
        """Seconds of one time."""
        return self.total / max(1, self.count)

    def __str__(self) -> str:
        return f"{self.label}: {self.count} times, {1000 * self.mean:.3f} ms each, {self.total:.3f} s in all"


def monitor_method_cuda_wall_times(metric: Metric, obj: Any, methodname: str) -> None:
    """From now on measure the calls of a method of an object, by device events where there is an accelerator.

    The result is printed when the program ends.
    """
    method = getattr(obj, methodname)

    @wraps(method)
    def measured(*args, **kwargs):
        metric.start()
        try:
            return method(*args, **kwargs)
        finally:
            metric.stop()

    setattr(obj, methodname, measured)
    atexit.register(lambda: print_rank_0(metric))

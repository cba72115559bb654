"""Micro-batches on their way from the loader to the model."""

from collections.abc import Callable, Iterator

import torch

from megatron.common import device


def to_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move a batch to this rank's device without waiting for the copy."""
    target = device.current_device()
    return {key: value.to(target, non_blocking=True) for key, value in batch.items()}


def batch_function(objective) -> Callable:
    """What DeepSpeed's pipeline engine calls on every batch it reads: -> (inputs, targets)."""
    return lambda batch: objective.collate(to_device(batch))


class TimedIterator:
    """Measures how long the training loop waits for data.

    Attributes: waited: seconds spent in `next` since `reset`.
    """

    def __init__(self, iterator: Iterator, timer):
        self._iterator, self._timer = iterator, timer

    def __iter__(self) -> "TimedIterator":
        return self

    def __next__(self):
        self._timer.start()
        try:
            return next(self._iterator)
        finally:
            self._timer.stop()

"""Micro-batches on their way from the loader to the model."""

from collections.abc import Callable, Iterator

import torch

from megatron.common import device
from megatron.common.errors import DataError


def to_device(batch: dict[str, torch.Tensor], vocabulary: int) -> dict[str, torch.Tensor]:
    """Move a batch to this rank's device without waiting for the copy.

    Raises: DataError for a token beyond the `vocabulary`, which on a GPU would end in an unreadable kernel error.
    """
    text = batch["text"]
    if not text.is_cuda and int(text.max()) >= vocabulary:
        raise DataError(
            f"the data has token {int(text.max())} and the model a vocabulary of {vocabulary}: the data was "
            "prepared with another tokenizer than tokenizer_type and vocab_file name"
        )
    target = device.current_device()
    return {key: value.to(target, non_blocking=True) for key, value in batch.items()}


def batch_function(objective, vocabulary: int) -> Callable:
    """What DeepSpeed's pipeline engine calls on every batch it reads: -> (inputs, targets)."""
    return lambda batch: objective.collate(to_device(batch, vocabulary))


class TimedIterator:
    """Measures with a timer how long the training loop waits for data."""

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

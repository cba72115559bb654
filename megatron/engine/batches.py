"""Micro-batches on their way from the loader to the model."""

from collections.abc import Iterator

import torch

from megatron import mpu
from megatron.common import activity, device
from megatron.common.errors import DataError
from megatron.objectives import build_objective


def to_device(batch: dict[str, torch.Tensor], vocabulary: int) -> dict[str, torch.Tensor]:
    """Move a batch to this rank's device without waiting for the copy.

    Raises: DataError for a token beyond the `vocabulary`, which on a GPU would end in an unreadable kernel error.
    """
    activity.pulse()
    text = batch["text"]
    if not text.is_cuda and int(text.max()) >= vocabulary:
        raise DataError(
            f"the data has token {int(text.max())} and the model a vocabulary of {vocabulary}: the data was "
            "prepared with another tokenizer than tokenizer_type and vocab_file name"
        )
    target = device.current_device()
    return {key: value.to(target, non_blocking=True) for key, value in batch.items()}


class BatchFunction:
    """A batch of the loader -> (inputs, targets) of the model, on this rank's device.

    Attributes: length: tokens to keep of every sample, None for all of them (a curriculum sets it).
    """

    def __init__(self, objective, vocabulary: int):
        self.objective, self.vocabulary = objective, vocabulary
        self.length: int | None = None

    def __call__(self, batch: dict[str, torch.Tensor]):
        batch = to_device(batch, self.vocabulary)
        if self.length is not None:
            # Samples have one token more than the model sees of them.
            cut = self.length + 1
            batch = {key: value[:, :cut] if value.dim() > 1 else value for key, value in batch.items()}
        return self.objective.collate(batch)


def use_length(engine, length: int | None) -> None:
    """From now on train or evaluate on samples cut to `length` tokens; None stands for whole ones."""
    if engine.batch_function.length == length:
        return
    engine.batch_function.length = length
    mpu.forget_buffers()
    if hasattr(engine, "reset_activation_shape"):
        # The pipeline keeps the buffers that it receives into from one batch to the next.
        engine.reset_activation_shape()


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


def get_batch(neox_args, data_iterator) -> tuple:
    """The next micro-batch: (tokens, labels, loss_mask, None, position_ids), each [b, s].

    The fourth place held an attention mask, which no back-end needs.
    """
    batch = to_device(next(data_iterator), neox_args.padded_vocab_size)
    (tokens, position_ids), (labels, loss_mask) = build_objective(neox_args).collate(batch)
    return tokens, labels, loss_mask, None, position_ids


def get_batch_sequential(forward_input: tuple, neox_args) -> tuple[torch.Tensor, torch.Tensor]:
    """What the plain model is fed of (tokens, position_ids, ...): those two; attention needs no mask."""
    return tuple(forward_input[:2])


def get_batch_pipe(data: dict, neox_args, curr_scheduler=None) -> tuple:
    """A batch for the pipeline engine: ((tokens, position_ids), (labels, loss_mask)).

    curr_scheduler: a Curriculum, to whose length at the iteration after neox_args.iteration the batch is cut.
    """
    prepare = BatchFunction(build_objective(neox_args), neox_args.padded_vocab_size)
    if curr_scheduler is not None:
        prepare.length = curr_scheduler.length_at((neox_args.iteration or 0) + 1)
    return prepare(data)

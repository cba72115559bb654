"""From data sets to batches: collation, worker processes, endless iterators."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from megatron import mpu
from megatron.common import device
from megatron.common.errors import DataError
from megatron.data.samplers import DistributedBatchSampler, EpochSampler

WATCH_SECONDS = 1.0
# What a terminal or a scheduler sends to the whole job, beside SIGTERM.
_TO_THE_JOB = [getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


def make_data_loader(dataset, neox_args, name: str = "data") -> DataLoader | None:
    """A loader of this data-parallel rank's micro-batches: dict of tensors [batch_size, ...] in a fixed order.

    Its length counts the micro-batches of one pass. Global micro-batch i, over all ranks, holds the samples
    [i * b, (i + 1) * b) with b = batch_size * data-parallel size; samples that fill no batch are left to the next pass.

    Args: dataset: map-style, None for None; name: of the split, for errors.
    Raises: DataError if there are fewer samples than one global micro-batch needs.
    """
    if dataset is None:
        return None
    ranks = mpu.get_data_parallel_world_size()
    global_batch = neox_args.batch_size * ranks
    if len(dataset) < global_batch:
        raise DataError(
            f"{name}: {len(dataset)} samples are fewer than one batch of {global_batch} (batch size"
            f" {neox_args.batch_size} on {ranks} data-parallel ranks): use more data or smaller batches"
        )
    sampler = EpochSampler(len(dataset), neox_args.seed)
    batches = DistributedBatchSampler(
        sampler, global_batch, drop_last=True, rank=mpu.get_data_parallel_rank(), world_size=ranks
    )
    # A loader seeds its workers from a generator; without one of its own, making an iterator would advance the global
    # random state, and a resumed run would no longer draw what the uninterrupted one did.
    generator = torch.Generator()
    generator.manual_seed(neox_args.seed)
    # Live samples come in one order, to one process.
    workers = 0 if getattr(dataset, "live", False) else neox_args.num_workers
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        generator=generator,
    )


def collate(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack the arrays of each key."""
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


class _Loader(DataLoader):
    """Turns batches into tensors only where they are used.

    A worker process would lend its tensors through a server of its own, with a socket below /tmp that stays there if
    the job is killed, and a connection for each tensor. Arrays go through a pipe, in less time.
    """

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        return map(_tensors, super().__iter__())


def _tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    tensors = {key: torch.from_numpy(values) for key, values in batch.items()}
    return (
        {key: tensor.pin_memory() for key, tensor in tensors.items()} if device.has_accelerator() else tensors
    )


class LoaderIterator:
    """Iterates over a loader from a given batch on; worker processes start with the first batch asked for.

    Args: start: batches to skip; endless: go on with further passes, each in an order of its own; samples: to skip
    besides.
    """

    def __init__(self, loader: DataLoader, start: int, endless: bool, samples: int = 0):
        self._loader, self._iterator = loader, None
        loader.batch_sampler.start_iter, loader.batch_sampler.start_sample = start, samples
        loader.batch_sampler.sampler.endless = endless

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self._iterator is None:
            with _no_signals():
                self._iterator = iter(self._loader)
        return next(self._iterator)


def shift_and_wrap_data_loaders(
    neox_args, data_loaders: dict, loop: bool = True, iteration: int | None = None, samples: int | None = None
) -> tuple[LoaderIterator | None, ...]:
    """Iterators (train, valid, test) that go on where a run stopped after `iteration` iterations; None where absent.

    Args: loop: start over, in new orders, when the data is used up; False ends after the pass the position lies in;
    iteration: default neox_args.iteration. The training iterator skips iteration * gradient_accumulation_steps batches,
    or `samples` samples where batches had other sizes before; the validation iterator the batches of the evaluations
    that the run has done.
    """
    finished = (neox_args.iteration if iteration is None else iteration) or 0
    accumulation = neox_args.gradient_accumulation_steps
    evaluations = finished // neox_args.eval_interval if neox_args.eval_interval else 0
    starts = {
        "train": (finished * accumulation, 0) if samples is None else (0, samples),
        "valid": (evaluations * neox_args.eval_iters * accumulation, 0),
        "test": (0, 0),
    }
    return tuple(
        None if data_loaders.get(name) is None else LoaderIterator(data_loaders[name], start, loop, besides)
        for name, (start, besides) in starts.items()
    )


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Processes that are made within the block hear no signal to the job, not even before `_start_worker` runs; what
    comes for this one waits until the end of the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, *_TO_THE_JOB})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    """Tie a worker process to its loader's: it ends with it, and only with it.

    An interrupt from the terminal, or a termination signal that a launcher or scheduler sends to every process of the
    job, must not take the data away from a trainer that is finishing its step; so only the parent may end the worker.
    """
    for number in _TO_THE_JOB:
        signal.signal(number, signal.SIG_IGN)
    wait = None
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        wait = signal.sigtimedwait
    # Not getppid(): the trainer may have died since it made this process.
    parent = multiprocessing.parent_process()
    threading.Thread(target=_watch_parent, args=(parent and parent.pid, wait), daemon=True).start()


def _watch_parent(parent: int, wait) -> None:
    while os.getppid() == parent:
        if wait is None:
            time.sleep(WATCH_SECONDS)
            continue
        with contextlib.suppress(InterruptedError):
            received = wait({signal.SIGTERM}, WATCH_SECONDS)
            if received is not None and received.si_pid == parent:
                break
    os._exit(0)  # the exit code that the loader takes for an orderly end

"""In which order samples are read, and which of them a data-parallel rank gets.

Position n of a run (n counts samples over all ranks and epochs) always holds the same sample, whatever the number of
ranks, and a sampler can start at any position without reading what lies before it.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

CHUNK = 1 << 16


class RandomSampler(Sampler):
    """Samples in random order, another one for each epoch.

    Args: data_source: sized data set; replacement: draw independently; num_samples: how many to draw (only with
    replacement; default: the size of the data set).
    Raises: ValueError for arguments that contradict each other.
    """

    def __init__(self, data_source, replacement: bool = False, num_samples: int | None = None):
        if num_samples is not None and not replacement:
            raise ValueError("num_samples can only be chosen when drawing with replacement")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be positive, not {num_samples}")
        self.data_source, self.replacement, self._num_samples = data_source, replacement, num_samples
        self.epoch = 0

    @property
    def num_samples(self) -> int:
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def set_epoch(self, epoch: int) -> None:
        """The order is a function of the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.epoch)
        size = len(self.data_source)
        if self.replacement:
            return iter(torch.randint(size, (self.num_samples,), generator=generator).tolist())
        return iter(torch.randperm(size, generator=generator).tolist())


class EpochSampler(Sampler):
    """Pass 0 over a data set in its own order (index maps are shuffled already), every later one in a new random order.

    Args: size: samples of the data set; seed: decides the later orders; endless: go on after the first pass.
    The length is that of one pass.
    """

    def __init__(self, size: int, seed: int, endless: bool = False):
        self.size, self.seed, self.endless = size, seed, endless

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return self.iterate_from(0)

    def iterate_from(self, position: int) -> Iterator[int]:
        """Samples at `position`, `position + 1`, ... to the end of that pass, or for ever if endless."""
        epoch, offset = divmod(position, self.size)
        while True:
            order = self.order_of(epoch)
            for start in range(offset, self.size, CHUNK):
                yield from order[start : min(start + CHUNK, self.size)].tolist()
            if not self.endless:
                return
            epoch, offset = epoch + 1, 0

    def order_of(self, epoch: int) -> "np.ndarray | _Identity":
        """The order of a pass, a pure function of (seed, epoch)."""
        if epoch == 0:
            return _Identity()
        order = np.arange(self.size, dtype=np.int64 if self.size > np.iinfo(np.int32).max else np.int32)
        np.random.RandomState([self.seed % 2**32, epoch]).shuffle(order)
        return order


class _Identity:
    """0, 1, 2, ... without holding them."""

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.arange(part.start, part.stop)


class DistributedBatchSampler(Sampler):
    """Global batches of `batch_size` samples, of each of which a rank gets its part.

    Args: sampler: order of samples; batch_size: of the global batch; drop_last: leave out an incomplete last batch;
    rank, world_size: of the data-parallel group (rank -1: of torch.distributed); wrap_last: fill an incomplete last
    batch up with samples from the beginning; interleave: ranks take every world_size-th sample instead of a contiguous
    part.

    Attributes: start_iter: batches to skip at the start of the next iteration, once; start_sample: samples besides.
    """

    def __init__(
        self,
        sampler,
        batch_size: int,
        drop_last: bool,
        rank: int = -1,
        world_size: int = 2,
        wrap_last: bool = False,
        interleave: bool = False,
    ):
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self.rank = torch.distributed.get_rank() if rank == -1 else rank
        self.world_size, self.wrap_last, self.interleave = world_size, wrap_last, interleave
        self.start_iter = self.start_sample = 0

    def __len__(self) -> int:
        batches, rest = divmod(len(self.sampler), self.batch_size)
        return batches + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        skip = self.start_iter * self.batch_size + self.start_sample
        self.start_iter = self.start_sample = 0
        if hasattr(self.sampler, "iterate_from"):
            samples = self.sampler.iterate_from(skip)
        else:
            samples = itertools.islice(iter(self.sampler), skip, None)
        while batch := list(itertools.islice(samples, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            while self.wrap_last and len(batch) < self.batch_size:
                batch += itertools.islice(iter(self.sampler), self.batch_size - len(batch))
            yield self._part(batch)

    def _part(self, batch: list[int]) -> list[int]:
        if self.interleave:
            return batch[self.rank : len(batch) : self.world_size]
        return batch[
            self.rank * len(batch) // self.world_size : (self.rank + 1) * len(batch) // self.world_size
        ]

"""Batches that one rank reads and the others of its replica get from it."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from megatron import mpu

KEYS = ("text", "label", "reward", "raw_reward")


@dataclass(frozen=True)
class Readers:
    """The ranks of a replica of the model that read its batches, first the one that others may get them from."""

    ranks: tuple[int, ...]
    group: dist.ProcessGroup


def replica_readers() -> Readers | None:
    """The readers of this rank's replica, which are all ranks of its first and last pipeline stage, with a group on the
    host; None where one rank reads alone. Collective over all ranks, those that do not read too."""
    topology = mpu.get_topology()
    if topology is None or not dist.is_initialized():
        return None
    own, found = dist.get_rank(), None
    stages = {0, max(1, topology.get_dim("pipe")) - 1}
    for replica in range(max(1, topology.get_dim("data"))):
        ranks = sorted({r for stage in stages for r in topology.filter_match(pipe=stage, data=replica)})
        if len(ranks) == 1:
            continue
        group = dist.new_group(ranks, backend="gloo")
        if own in ranks:
            found = Readers(tuple(ranks), group)
    return found


class SharedBatches:
    """A data set of which only the first of some ranks reads; all of them must ask for the same batches in one order.

    The first rank waits for nobody, for the stages of a pipeline take a batch at different times.

    Args: dataset: of live samples, whose items have KEYS; readers: among them this rank.
    """

    live = True

    def __init__(self, dataset, readers: Readers):
        self.dataset, self._readers = dataset, readers
        self._under_way: deque[tuple[dist.Work, torch.Tensor]] = deque()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        """The samples of a micro-batch. Raises, on the first rank: what the data set raises."""
        lengths = [self.dataset.seq_length + 1] * 2 + [1, 1]
        if dist.get_rank() == self._readers.ranks[0]:
            samples = [self.dataset[index] for index in indices]
            self._send(np.stack([np.concatenate([sample[key] for key in KEYS]) for sample in samples]))
            return samples
        # Token numbers and fp32 values are exact in fp64, so that one tensor holds all of a sample.
        rows = torch.empty(len(indices), sum(lengths), dtype=torch.float64)
        dist.recv(rows, self._readers.ranks[0], group=self._readers.group)
        return [_unpacked(row, lengths) for row in rows.numpy()]

    def _send(self, rows: np.ndarray) -> None:
        tensor = torch.from_numpy(rows.astype(np.float64))
        while self._under_way and self._under_way[0][0].is_completed():
            self._under_way.popleft()
        # Not a broadcast, in which readers would wait for each other.
        for reader in self._readers.ranks[1:]:
            self._under_way.append((dist.isend(tensor, reader, group=self._readers.group), tensor))


def _unpacked(row: np.ndarray, lengths: list[int]) -> dict[str, np.ndarray]:
    text, label, reward, raw_reward = np.split(row, np.cumsum(lengths)[:-1])
    return {
        "text": text.astype(np.int64),
        "label": label.astype(np.int64),
        "reward": reward.astype(np.float32),
        "raw_reward": raw_reward.astype(np.float32),
    }

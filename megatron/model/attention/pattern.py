"""What a query sees, and what is added to its scores.

Legend: b batch, n heads of this tensor-parallel rank, t positions; i is the position of a query, j that of a key.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Bias [n, *shape] of distances i - j >= 0, int64 of any shape.
RelativeBias = Callable[[torch.Tensor], torch.Tensor]


class OnDevice:
    """A constant tensor, copied to a device once."""

    def __init__(self, tensor: torch.Tensor):
        self._copies = {tensor.device: tensor}

    def __call__(self, device: torch.device) -> torch.Tensor:
        if device not in self._copies:
            with torch.inference_mode(False):  # a copy made while sampling must serve training later
                self._copies[device] = next(iter(self._copies.values())).to(device)
        return self._copies[device]


class BlockLayout:
    """A block-sparse pattern, the same for a prefix whatever the length, so that decoding can go on with it.

    Args:
        block: positions in a block, of queries and of keys.
        define: (blocks, head) -> bool [blocks, blocks], whether a block of queries (row) sees a block of keys; what it
            says of later keys does not matter.
        heads: the heads, numbered over all tensor-parallel ranks, that have a layout of their own; one if all share it.
    """

    def __init__(self, block: int, define: Callable[[int, int], torch.Tensor], heads: range):
        self.block, self.heads = block, heads
        self._define = define
        self._blocks = 0
        self._table: OnDevice

    def table(self, length: int, device: torch.device) -> torch.Tensor:
        """bool [len(heads), blocks, blocks] with blocks enough for that many positions or more, none of them later than
        its query."""
        needed = -(-length // self.block)
        if needed > self._blocks:
            self._blocks = max(needed, 2 * self._blocks)
            with torch.inference_mode(False), torch.device("cpu"):
                layouts = [self._define(self._blocks, head) for head in self.heads]
                self._table = OnDevice(torch.stack(layouts).tril())
        return self._table(device)


@dataclass(frozen=True)
class Pattern:
    """A query sees the keys j <= i that every field allows.

    Attributes:
        window: i - j < window (arXiv 2310.06825).
        layout: block-sparse.
        slopes: ALiBi (arXiv 2108.12409), fp32 [n]: slope * (i - j) is taken off a score.
        bias: relative position bias, added to a score.
        bias_factor: multiplies what slopes and bias say.
    """

    window: int | None = None
    layout: BlockLayout | None = None
    slopes: OnDevice | None = None
    bias: RelativeBias | None = None
    bias_factor: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether it is causal attention and nothing else."""
        return self.window is None and self.layout is None and not self.biased

    @property
    def biased(self) -> bool:
        return self.slopes is not None or self.bias is not None

    def scaled_slopes(self, device: torch.device) -> torch.Tensor:
        """fp32 [n]."""
        assert self.slopes is not None
        return self.slopes(device) * self.bias_factor

    def bias_by_distance(self, length: int, device: torch.device) -> torch.Tensor | None:
        """fp32 [n, length]: what is added to scores of keys 0 .. length-1 positions back. None: nothing is."""
        distance = torch.arange(length, device=device)
        found = None
        if self.slopes is not None:
            found = self.scaled_slopes(device)[:, None] * -distance
        if self.bias is not None:
            relative = self.bias(distance).float() * self.bias_factor
            found = relative if found is None else found + relative
        return found


def document_starts(positions: torch.Tensor) -> torch.Tensor:
    """int64 [b, t]: index of the first position of the document that a position is in; positions as in Backend."""
    return torch.arange(positions.shape[1], device=positions.device) - positions

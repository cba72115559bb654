"""torch's FlexAttention (arXiv 2412.05496), compiled for a GPU: any pattern, at the cost of the blocks it touches.

Legend: b batch, n heads, t positions; rows and columns are blocks of BLOCK queries and keys.
"""

import functools
import math

import torch

from megatron.common.device import has_accelerator
from megatron.model.attention.backend import Demands
from megatron.model.attention.blockwise import BlockwiseAttention
from megatron.model.attention.pattern import Pattern, document_starts
from megatron.registry import register

BLOCK = 128  # positions; what the kernels work on at a time


@functools.cache
def _compiled():
    """Imported at the first call, because it loads torch's compiler."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@register("attention back-end", "flex")
class FlexAttention:
    """See Backend."""

    preference = 2

    def __init__(self, pattern: Pattern):
        self.pattern = pattern
        # A few queries at the end of a growing sequence are not worth a kernel for each length.
        self.continued = BlockwiseAttention(pattern)
        self._latest: tuple = (None, None, None)  # length, positions, their block mask

    @staticmethod
    def serves(pattern: Pattern, demands: Demands) -> bool:
        # Layouts are looked up in units that blocks of theirs and of the kernel share.
        fits = pattern.layout is None or math.gcd(pattern.layout.block, BLOCK) >= 16
        return fits and 16 <= demands.head_size <= 256 and demands.dropout == 0 and has_accelerator()

    def __call__(self, query, key, value, *, scale, dropout, positions=None):
        if query.shape[2] != key.shape[2] or dropout:
            return self.continued(query, key, value, scale=scale, dropout=dropout, positions=positions)
        return _compiled()(
            query,
            key,
            value,
            score_mod=score_change(self.pattern, key.shape[2], query.device),
            block_mask=self._block_mask(key.shape[2], query.device, positions),
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )

    def _block_mask(self, length: int, device: torch.device, positions: torch.Tensor | None):
        """The last one is kept: lengths hardly ever change, and activation checkpointing asks twice."""
        if self._latest[0] != length or self._latest[1] is not positions:
            with torch.inference_mode(False):  # one made while evaluating must serve training later
                self._latest = length, positions, block_mask(self.pattern, length, device, positions)
        return self._latest[2]


def score_change(pattern: Pattern, length: int, device: torch.device):
    """FlexAttention's score_mod, (score, b, h, i, j) -> score; None where the pattern adds nothing."""
    if not pattern.biased:
        return None
    if pattern.bias is None:
        slopes = pattern.scaled_slopes(device)
        return lambda score, b, h, i, j: score - slopes[h] * (i - j)
    table = pattern.bias_by_distance(length, device)
    return lambda score, b, h, i, j: score + table[h, (i - j).clamp(min=0)]


def block_mask(pattern: Pattern, length: int, device: torch.device, positions: torch.Tensor | None):
    """FlexAttention's BlockMask for `length` queries and keys, made without a tensor of [t, t]."""
    from torch.nn.attention.flex_attention import BlockMask

    touched, whole = touched_blocks(pattern, length, device, positions)
    partly = touched & ~whole
    return BlockMask.from_kv_blocks(
        *_ordered(partly),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=visibility(pattern, length, device, positions),
        seq_lengths=(length, length),
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(count int32 [..., rows], the columns that are set first, int32 [..., rows, columns])."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int().contiguous()


def visibility(pattern: Pattern, length: int, device: torch.device, positions: torch.Tensor | None):
    """FlexAttention's mask_mod, (b, h, i, j) -> bool."""
    window, layout = pattern.window, pattern.layout
    block = None if layout is None else layout.block
    starts = None if positions is None else document_starts(positions)
    table = None if layout is None else layout.table(length, device)

    def visible(b, h, i, j):
        seen = i >= j
        if window is not None:
            seen = seen & (i - j < window)
        if starts is not None:
            seen = seen & (j >= starts[b, i])
        if table is not None:
            row, column = (i, j) if positions is None else (positions[b, i], positions[b, j])
            head = h if table.shape[0] > 1 else 0
            seen = seen & table[head, row // block, column // block]
        return seen

    return visible


def touched_blocks(
    pattern: Pattern, length: int, device: torch.device, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [b or 1, n or 1, rows, columns]: whether any query of a row sees any key of a column, and whether all see
    all. Where a layout meets a window or documents the first may be true of a block that nothing is seen of."""
    count = -(-length // BLOCK)
    low = torch.arange(count, device=device) * BLOCK
    high = (low + BLOCK - 1).clamp(max=length - 1)
    row_low, row_high, column_low, column_high = low[:, None], high[:, None], low[None, :], high[None, :]
    touched, whole = column_low <= row_high, column_high <= row_low
    if pattern.window is not None:
        touched = touched & (row_low - column_high < pattern.window)
        whole = whole & (row_high - column_low < pattern.window)
    touched, whole = touched[None, None], whole[None, None]
    if positions is not None:
        starts = document_starts(positions)  # they do not fall, so that the ends of a row are its extremes
        touched = touched & (column_high >= starts[:, low, None])[:, None]
        whole = whole & (column_low >= starts[:, high, None])[:, None]
    if pattern.layout is not None:
        anywhere, everywhere = _layout_blocks(pattern, count, device)
        # Blocks of a document are counted from its start, so that they say nothing of these.
        touched = touched & anywhere if positions is None else touched
        whole = whole & everywhere if positions is None else torch.zeros_like(whole)
    return touched, whole


def _layout_blocks(pattern: Pattern, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """touched and whole of the layout alone, [1, n or 1, count, count]."""
    layout = pattern.layout
    unit = math.gcd(layout.block, BLOCK)
    units = count * BLOCK // unit
    index = torch.arange(units, device=device) * unit // layout.block
    table = layout.table(count * BLOCK, device)[:, index][:, :, index]
    # The diagonal is never whole, so that it does not matter that it ends within blocks.
    table = table.unflatten(2, (count, -1)).unflatten(1, (count, -1))
    return table.any(4).any(2)[None], table.all(4).all(2)[None]

"""Exact attention by any pattern on any device: a block of queries at a time, over the keys that it can see.

No tensor is larger than [heads, BLOCK, keys], for gradients neither, since a block is computed anew for its backward.
Legend: b batch, n query heads, kv key/value heads, d head size; s queries, the last of t positions; q queries of a
block and k keys it looks at.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from megatron.model.attention.backend import Demands
from megatron.model.attention.one_query import attend_in_fp32, wants_fp32
from megatron.model.attention.pattern import Pattern, document_starts
from megatron.registry import register

BLOCK = 128  # queries


@register("attention back-end", "blockwise")
class BlockwiseAttention:
    """See Backend."""

    preference = 3

    def __init__(self, pattern: Pattern):
        self.pattern = pattern

    @staticmethod
    def serves(pattern: Pattern, demands: Demands) -> bool:
        return True

    def __call__(self, query, key, value, *, scale, dropout, positions=None):
        queries, length = query.shape[2], key.shape[2]
        bias = self.pattern.bias_by_distance(length, query.device)
        firsts = range(length - queries, length, BLOCK)
        reach = self._earliest_keys(firsts, length, positions)
        outputs = []
        for (first, earliest), block in zip(
            zip(firsts, reach, strict=True), query.split(BLOCK, 2), strict=True
        ):
            inputs = (block, key, value, bias, positions, first, earliest, scale, dropout)
            if torch.is_grad_enabled() and len(firsts) > 1:
                outputs.append(checkpoint(self._block, *inputs, use_reentrant=False))
            else:
                outputs.append(self._block(*inputs))
        return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]

    def _earliest_keys(self, firsts: range, length: int, positions) -> list[int]:
        """For every block of queries a position before which it sees nothing."""
        window = self.pattern.window or length
        earliest = [max(0, first - window + 1) for first in firsts]
        if positions is None:
            return earliest
        # The starts do not fall within a row, so that a block's first query looks back the furthest.
        starts = document_starts(positions)[:, list(firsts)].amin(0).tolist()
        return [max(pair) for pair in zip(earliest, starts, strict=True)]

    def _block(self, query, key, value, bias, positions, first, earliest, scale, dropout):
        """Attention of the queries [b, n, q, d] at first, first+1, ... to keys from `earliest` on."""
        rows = torch.arange(first, first + query.shape[2], device=query.device)
        last = first + query.shape[2]
        columns = self._columns(rows, first, earliest, positions)
        if columns is None:
            columns = torch.arange(earliest, last, device=query.device)
            key, value = key[:, :, earliest:last], value[:, :, earliest:last]
        else:
            key, value = key.index_select(2, columns), value.index_select(2, columns)
        if query.shape[2] == 1 and bias is None and positions is None and self.pattern.layout is None:
            return _attend(query, key, value, None, scale, dropout)  # it sees all that is left
        mask = self._visible(rows, columns, positions, last)
        if bias is not None:
            distance = (rows[:, None] - columns).clamp_(min=0)
            added = bias.index_select(1, distance.flatten()).unflatten(1, distance.shape)
            mask = added.masked_fill(~mask, -torch.inf)
        return _attend(query, key, value, mask, scale, dropout)

    def _columns(self, rows, first, earliest, positions) -> torch.Tensor | None:
        """Positions of the keys to look at, int64 [k]; None: all from `earliest` to the last query."""
        layout = self.pattern.layout
        if layout is None or positions is not None:
            return None
        last = first + len(rows)
        seen = layout.table(last, rows.device)[:, first // layout.block : -(-last // layout.block)]
        blocks = seen.any(0).any(0).nonzero()
        columns = (blocks * layout.block + torch.arange(layout.block, device=rows.device)).flatten()
        return columns[(columns >= earliest) & (columns < last)]

    def _visible(self, rows, columns, positions, last: int) -> torch.Tensor:
        """bool [1 or b, 1 or n, q, k]; all of them are before `last`."""
        distance = rows[:, None] - columns
        visible = (distance >= 0)[None, None]
        if self.pattern.window is not None:
            visible = visible & (distance < self.pattern.window)
        if positions is not None:
            visible = visible & (columns >= document_starts(positions)[:, rows, None])[:, None]
        layout = self.pattern.layout
        if layout is None:
            return visible
        table = layout.table(last, rows.device)
        if positions is None:
            allowed = table[:, rows // layout.block][:, :, columns // layout.block][None]
        else:
            # A document sees of itself what it would see alone.
            within = positions // layout.block
            allowed = table[:, within[:, rows, None], within[:, None, columns]].transpose(0, 1)
        return visible & allowed


def _attend(query, key, value, mask, scale, dropout):
    """Attention under a mask or an fp32 bias [1 or b, 1 or n, q, k], or None for neither; query heads that share keys
    become rows of one head, so that keys need not be repeated."""
    dtype = query.dtype
    if mask is None and wants_fp32(query, dropout):
        return attend_in_fp32(query, key, value, scale)
    if mask is not None and mask.is_floating_point():
        # Rounding a bias to 16 bits would blur the positions of distant keys.
        query, key, value = query.to(mask.dtype), key.to(mask.dtype), value.to(mask.dtype)
    heads, kv_heads, rows = query.shape[1], key.shape[1], query.shape[2]
    group = heads // kv_heads
    if group > 1:
        query = query.reshape(query.shape[0], kv_heads, group * rows, -1)
        if mask is not None:
            batch, _, _, keys = mask.shape
            mask = mask.expand(-1, max(mask.shape[1], group), -1, -1).reshape(batch, -1, group * rows, keys)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    return output.reshape(output.shape[0], heads, rows, -1).to(dtype)

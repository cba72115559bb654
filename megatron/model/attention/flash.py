"""The flash-attn package (arXiv 2307.08691), for 16-bit tensors on a GPU.

Legend: b batch, n query heads, d head size; s queries, the last of t positions.
"""

import importlib.util

import torch

from megatron.common.device import compute_capability
from megatron.common.optional import require
from megatron.model.attention.backend import Demands
from megatron.model.attention.pattern import Pattern, document_starts
from megatron.registry import register


@register("attention back-end", "flash_attn")
class FlashAttention:
    """See Backend. The package aligns a causal mask with the last key, as a continued sequence needs."""

    preference = 0

    def __init__(self, pattern: Pattern):
        flash_attn = require("flash_attn", "flashattention", "this GPU's attention")
        self.pattern = pattern
        self.attend = flash_attn.flash_attn_func
        self.attend_within = flash_attn.flash_attn_varlen_func

    @staticmethod
    def serves(pattern: Pattern, demands: Demands) -> bool:
        fits = demands.dtype in (torch.float16, torch.bfloat16) and demands.head_size <= 256
        able = pattern.layout is None and pattern.bias is None and demands.head_size % 8 == 0
        # Its kernels begin with the Ampere generation.
        there = compute_capability() >= (8, 0) and importlib.util.find_spec("flash_attn") is not None
        return fits and able and there

    def __call__(self, query, key, value, *, scale, dropout, positions=None):
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        window, slopes = self.pattern.window, None
        if self.pattern.slopes is not None:
            slopes = self.pattern.scaled_slopes(query.device)
        options = {
            "dropout_p": dropout,
            "softmax_scale": scale,
            "causal": True,
            # The package counts the keys before the query's own one; -1 is no limit.
            "window_size": (-1 if window is None else window - 1, 0),
            "alibi_slopes": slopes,
        }
        if positions is None:
            return self.attend(query, key, value, **options).transpose(1, 2)
        batch, queries = query.shape[:2]
        lengths = (queries, key.shape[1])
        output = self.attend_within(
            *(tensor.flatten(0, 1) for tensor in (query, key, value)),
            *_document_ends(positions, queries),
            *lengths,
            **options,
        )
        return output.unflatten(0, (batch, queries)).transpose(1, 2)


# The documents of the positions seen last: all layers ask about the same tensor, and the answer waits for the device.
_latest: tuple[torch.Tensor, int, tuple[torch.Tensor, torch.Tensor]] | None = None


def _document_ends(positions: torch.Tensor, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 [documents + 1] for queries and for keys, of all rows [b, t] one behind the other: where documents end,
    after a leading 0."""
    global _latest
    if _latest is not None and _latest[0] is positions and _latest[1] == queries:
        return _latest[2]
    batch, length = positions.shape
    first = document_starts(positions) == torch.arange(length, device=positions.device)
    row, column = first.nonzero(as_tuple=True)
    key_ends = torch.cat((row * length + column, row.new_tensor([batch * length])))
    # Queries are the last of a row: a document may have fewer of them than keys, or none.
    query_starts = row * queries + (column - (length - queries)).clamp(min=0)
    query_ends = torch.cat((query_starts, row.new_tensor([batch * queries])))
    _latest = positions, queries, (query_ends.int(), key_ends.int())
    return _latest[2]

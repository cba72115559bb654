"""torch's scaled_dot_product_attention: flash, cuDNN or memory-efficient kernels on a GPU, a flash kernel on CPU."""

import torch
import torch.nn.functional as F

from megatron.common.device import compute_capability, has_accelerator
from megatron.model.attention.backend import Demands
from megatron.model.attention.blockwise import BlockwiseAttention
from megatron.model.attention.one_query import attend_in_fp32, wants_fp32
from megatron.model.attention.pattern import Pattern
from megatron.registry import register


@register("attention back-end", "sdpa")
class ScaledDotProductAttention:
    """See Backend. Causal attention, of which the kernels need no mask tensor (equal lengths, one query)."""

    preference = 1

    def __init__(self, pattern: Pattern):
        # torch's is_causal aligns the first query with the first key, a continued sequence its last with the last.
        self.continued = BlockwiseAttention(pattern)

    @staticmethod
    def serves(pattern: Pattern, demands: Demands) -> bool:
        # On a CPU only the kernel without dropout is fused; the other holds all scores.
        return pattern.plain and not demands.isolated and (demands.dropout == 0 or has_accelerator())

    def __call__(self, query, key, value, *, scale, dropout, positions=None):
        queries, keys = query.shape[2], key.shape[2]
        if positions is not None or 1 < queries < keys:
            return self.continued(query, key, value, scale=scale, dropout=dropout, positions=positions)
        if wants_fp32(query, dropout):
            return attend_in_fp32(query, key, value, scale)
        group = query.shape[1] // key.shape[1]
        if group > 1 and query.is_cuda and (query.dtype == torch.float32 or compute_capability() < (8, 0)):
            # The only fused kernels for fp32, and on GPUs before Ampere, want as many key heads as query heads.
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
            group = 1
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=queries > 1, scale=scale, enable_gqa=group > 1
        )

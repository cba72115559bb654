"""torch's scaled_dot_product_attention: flash, cuDNN or memory-efficient kernels on a GPU, a flash kernel on CPU."""

import torch
import torch.nn.functional as F

from megatron.model.attention.backend import Capabilities
from megatron.registry import register


@register("attention back-end", "sdpa", capabilities=Capabilities(gqa=True))
class ScaledDotProductAttention:
    """See Backend. No mask tensor is made by the two common cases (equal lengths, one query)."""

    def __call__(self, query, key, value, *, scale, dropout, positions=None):
        assert positions is None, "isolated documents need another back-end"
        queries, keys = query.shape[2], key.shape[2]
        if key.shape[1] != query.shape[1]:
            key, value = (_repeat_heads(t, query.shape[1] // t.shape[1]) for t in (key, value))
        bias = _continued_causal(queries, keys) if 1 < queries < keys else None
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias,
            dropout_p=dropout,
            is_causal=queries == keys and queries > 1,
            scale=scale,
        )


def _continued_causal(queries: int, keys: int):
    """torch's is_causal aligns the first query with the first key, a continued sequence its last with the last.

    Imported where a cache is continued by several tokens, because it loads torch's compiler, a second at every start.
    """
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(queries, keys)


def _repeat_heads(tensor: torch.Tensor, times: int) -> torch.Tensor:
    """[b, kv, t, d] -> [b, kv * times, t, d], each head repeated in place."""
    batch, heads, length, size = tensor.shape
    return tensor.unsqueeze(2).expand(batch, heads, times, length, size).flatten(1, 2)

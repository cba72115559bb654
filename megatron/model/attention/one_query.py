"""Attention of a single query in 16 bits on a CPU, as every step of a continued text asks for it.

torch's CPU kernel for 16 bits works on many queries at once, and with one wastes most of what it does.
"""

import torch

CONVERTED = 2**19  # elements of keys held in fp32 at a time: they stay within a core's cache


def wants_fp32(query: torch.Tensor, dropout: float) -> bool:
    """Whether attend_in_fp32 is the faster way for a query [b, n, s, d]."""
    return query.shape[2] == 1 and query.element_size() == 2 and query.device.type == "cpu" and dropout == 0


def attend_in_fp32(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """query [b, n, 1, d]; key, value [b, kv, t, d] with kv dividing n -> [b, n, 1, d]; all keys are seen."""
    batch, kv_heads, length, size = key.shape
    queries = query.reshape(batch * kv_heads, -1, size).float()
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    at_once = max(1, CONVERTED // (length * size))
    if at_once >= len(queries):
        return _attend(queries, keys, values, scale).to(query.dtype).view(query.shape)
    parts = zip(*(heads.split(at_once) for heads in (queries, keys, values)), strict=True)
    return torch.cat([_attend(*part, scale) for part in parts]).to(query.dtype).view(query.shape)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """fp32 [heads, group, d] -> the same, for key and value [heads, t, d] of any dtype."""
    weights = torch.softmax(torch.bmm(query, key.float().transpose(1, 2)).mul_(scale), -1)
    return torch.bmm(weights, value.float())

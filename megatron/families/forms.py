"""Forms of projections to queries, keys and values that some families have of their own.

Legend: h hidden size, n query heads, kv key/value heads, d head size, r rotated features of a head.
"""

from collections.abc import Sequence

import torch

from megatron.families.rules import Form, query_key_value


def fused_transposed(heads: int) -> Form:
    """One matrix [h, 3 n d], or bias [3 n d], whose columns are all q, all k, all v: GPT-2."""
    inner = query_key_value(heads, heads)

    def split(whole: torch.Tensor) -> Sequence[torch.Tensor]:
        return [torch.cat(list(inner.split(whole))).t()]

    return Form(lambda parts: inner.join(parts[0].t().chunk(3)), split)


def fused_groups(heads: int, kv_heads: int) -> Form:
    """One matrix or bias whose rows are, for each key/value head, the queries that look at it, the key, the value:
    Falcon."""
    if heads == kv_heads:
        return Form(lambda parts: parts[0], lambda whole: [whole])
    group = heads // kv_heads

    def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        sections = parts[0].unflatten(0, (kv_heads, group + 2, -1)).split([group, 1, 1], 1)
        return torch.cat([section.flatten(0, 2) for section in sections])

    def split(whole: torch.Tensor) -> Sequence[torch.Tensor]:
        rows = whole.unflatten(0, (heads + 2 * kv_heads, -1)).split([heads, kv_heads, kv_heads])
        return [torch.cat([part.unflatten(0, (kv_heads, -1)) for part in rows], 1).flatten(0, 2)]

    return Form(join, split)


def rotated_in_pairs(heads: int, rotated: int) -> Form:
    """q, k, v of which the first r features of each head of q and k are turned in pairs (0, 1), (2, 3), ...: GPT-J.

    Ours are turned in pairs (0, r/2), (1, r/2 + 1), ...; scores do not depend on the order of features.
    """
    inner = query_key_value(heads, heads)

    def halves(part: torch.Tensor) -> torch.Tensor:
        turned, rest = _features(part)
        return _rows(torch.cat([turned[:, 0::2], turned[:, 1::2]], 1), rest)

    def pairs(part: torch.Tensor) -> torch.Tensor:
        turned, rest = _features(part)
        return _rows(torch.stack(turned.chunk(2, 1), 2).flatten(1, 2), rest)

    def _features(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = part.unflatten(0, (heads, -1))
        return rows[:, :rotated], rows[:, rotated:]

    def _rows(turned: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        return torch.cat([turned, rest], 1).flatten(0, 1)

    def split(whole: torch.Tensor) -> Sequence[torch.Tensor]:
        query, key, value = inner.split(whole)
        return [pairs(query), pairs(key), value]

    return Form(lambda parts: inner.join([halves(parts[0]), halves(parts[1]), parts[2]]), split)

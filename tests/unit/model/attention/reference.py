"""Attention as its definition says it, in fp64 with the whole matrix of scores, and patterns to try."""

import torch

from megatron.model.attention.pattern import BlockLayout, OnDevice, Pattern

HEADS = 4
BLOCK = 4  # positions of a block of the sparse patterns


def dense_mask(pattern: Pattern, length: int, positions=None) -> torch.Tensor:
    """bool [b or 1, n or 1, t, t]: what is seen. A document begins where its positions are 0."""
    place = torch.arange(length)[None] if positions is None else positions
    i, j = torch.arange(length)[:, None], torch.arange(length)
    seen = (j <= i) & (i - j <= place[:, :, None])
    if pattern.window is not None:
        seen = seen & (i - j < pattern.window)
    seen = seen[:, None]
    if pattern.layout is not None:
        table = pattern.layout.table(length, torch.device("cpu"))
        blocks = place // pattern.layout.block
        of_rows = [table[:, row][:, :, row] for row in blocks]
        seen = seen & torch.stack(of_rows)
    return seen


def dense_attention(pattern: Pattern, query, key, value, scale: float, positions=None) -> torch.Tensor:
    """See Backend; fp64."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    queries, length = query.shape[2], key.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    scores = query @ key.transpose(-1, -2) * scale
    added = torch.zeros(query.shape[1], length, length, dtype=torch.float64)
    if pattern.slopes is not None:
        added = added - pattern.slopes(torch.device("cpu")).double()[:, None, None] * distance
    if pattern.bias is not None:
        added = added + pattern.bias(distance.clamp(min=0)).double()
    scores = scores + pattern.bias_factor * added[:, length - queries :]
    seen = dense_mask(pattern, length, positions)[:, :, length - queries :]
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


class ToyBias(torch.nn.Module):
    """A relative position bias: one number for a head and each of eight distances; the last for all beyond."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, HEADS, generator=torch.Generator().manual_seed(5)))

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        return self.weight[distance.clamp(max=7)].movedim(-1, 0)


def random_layout(heads: int, block: int = BLOCK) -> BlockLayout:
    def define(blocks: int, head: int) -> torch.Tensor:
        rows = torch.arange(blocks)
        apart = rows[:, None] - rows
        return (apart == 0) | ((apart * 7 + rows * 3 + head) % 5 == 0)

    return BlockLayout(block, define, range(heads))


def slopes() -> OnDevice:
    return OnDevice(torch.tensor([0.5, 0.25, 0.125, 0.0625]))


# name -> a new pattern
PATTERNS = {
    "causal": lambda: Pattern(),
    "window": lambda: Pattern(window=5),
    "wide window": lambda: Pattern(window=1000),
    "window of one": lambda: Pattern(window=1),
    "layout": lambda: Pattern(layout=random_layout(1)),
    "layout per head": lambda: Pattern(layout=random_layout(HEADS)),
    "layout and window": lambda: Pattern(layout=random_layout(HEADS), window=11),
    "alibi": lambda: Pattern(slopes=slopes()),
    "alibi, window, factor": lambda: Pattern(slopes=slopes(), window=7, bias_factor=3.0),
    "relative bias": lambda: Pattern(bias=ToyBias()),
    "everything": lambda: Pattern(
        window=13, layout=random_layout(HEADS), slopes=slopes(), bias=ToyBias(), bias_factor=2.0
    ),
}


def tensors(
    batch: int, kv_heads: int, length: int, size: int = 16, seed: int = 0, queries: int | None = None
):
    """query [b, n, queries or t, d], key, value [b, kv, t, d], fp32."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, HEADS, queries or length, size), *[(batch, kv_heads, length, size)] * 2
    return [torch.randn(shape, generator=generator) for shape in shapes]


def some_documents(length: int) -> torch.Tensor:
    """positions int64 [2, t]: a row of three documents, the second of one token, and a row of two."""
    cut = max(2, length // 3)
    rows = [(cut, 1, length - cut - 1), (length // 2 + 1, length - length // 2 - 1)]
    return torch.stack([torch.cat([torch.arange(count) for count in row]) for row in rows])

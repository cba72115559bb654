"""The peer of training_step.py: the same GPT-NeoX model as one would write it in a single file of plain PyTorch."""

import torch
from torch import nn
from torch.nn import functional


def rotary_tables(sequence: int, rotated: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 10000.0 ** (-torch.arange(0, rotated, 2, device=device).float() / rotated)
    angles = torch.outer(torch.arange(sequence, device=device).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rotated, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.cat((rotated * cos.to(x.dtype) + turned * sin.to(x.dtype), rest), dim=-1)


class Block(nn.Module):
    """Parallel residual: attention and MLP read the same input through norms of their own."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.dense = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, sequence, hidden = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, sequence, self.heads, 3 * hidden // self.heads)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        attention = self.dense(attended.transpose(1, 2).reshape(batch, sequence, hidden))
        return x + attention + self.down(functional.gelu(self.up(self.norm_mlp(x))))


class PlainGPT(nn.Module):
    """GPT-NeoX with rotary positions over a quarter of each head and an untied output layer.

    forward: tokens int64 [b, s+1] -> mean next-token loss.
    """

    def __init__(self, vocabulary: int, layers: int, hidden: int, heads: int, sequence: int, device):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        self.cos, self.sin = rotary_tables(sequence, hidden // heads // 4, device)
        self.to(device)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.embedding(text[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x)).float()
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), text[:, 1:].reshape(-1))

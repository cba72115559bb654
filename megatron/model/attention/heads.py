"""Which heads a tensor-parallel rank works with, and where their rows stand in the fused projection.

Legend: s sequence, b batch, d head size, n query heads and kv key/value heads of a rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron import mpu
from megatron.neox_arguments.attention_sizes import head_size, key_value_heads


@dataclass(frozen=True)
class HeadLayout:
    """The heads of a model and the tensor-parallel ranks they are cut over.

    Rows of the projection: per head q|k|v; with fewer key/value heads than query heads (arXiv 2305.13245), per rank all
    its q, then k, then v.

    Where there are more ranks than key/value heads, several ranks work with the same one. Each stores its own part of
    the rows of that head only, and what the parts give is gathered. So every row is stored once, and nothing that
    handles parameters (gradients and their norm, optimizer states, checkpoints) meets a replica of a part of one.

    Attributes: queries, keys: query heads and key/value heads of the model; size: features of a head.
    """

    queries: int
    keys: int
    size: int
    ranks: int = 1
    rank: int = 0

    @classmethod
    def from_config(cls, neox_args) -> "HeadLayout":
        """For this rank; keys num_attention_heads, num_kv_heads, head_dim, hidden_size."""
        return cls(
            neox_args.num_attention_heads,
            key_value_heads(neox_args),
            head_size(neox_args),
            mpu.get_model_parallel_world_size(),
            mpu.get_model_parallel_rank(),
        )

    @property
    def grouped(self) -> bool:
        return self.keys != self.queries

    @property
    def sections(self) -> tuple[int, int, int]:
        """Rows of q, k and v in the projection of the whole model."""
        return self.queries * self.size, self.keys * self.size, self.keys * self.size

    @property
    def heads(self) -> int:
        """Query heads of this rank."""
        return self.queries // self.ranks

    @property
    def kv_heads(self) -> int:
        """Key/value heads that the queries of this rank look at."""
        return max(1, self.keys // self.ranks)

    @property
    def sharers(self) -> int:
        """Ranks that work with the same key/value head."""
        return max(1, self.ranks // self.keys)

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views q [s, b, n, d], k and v [s, b, kv, d] of a projection [s, b, (n + 2 kv) d] of whole heads."""
        if not self.grouped:
            return qkv.unflatten(-1, (self.heads, 3, self.size)).unbind(-2)
        counts = (self.heads, self.kv_heads, self.kv_heads)
        return qkv.unflatten(-1, (sum(counts), self.size)).split(counts, -2)

    def split_turned(
        self, qkv: torch.Tensor, turn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """split, with q and k turned, in one call: `turn` is given [s, b, *, *, d] and gives a new tensor like it."""
        if not self.grouped:
            heads = qkv.unflatten(-1, (self.heads, 3, self.size))
            return *turn(heads[..., :2, :]).unbind(-2), heads[..., 2, :]
        turned = self.heads + self.kv_heads
        heads = qkv.unflatten(-1, (1, turned + self.kv_heads, self.size))
        query, key = turn(heads[..., :turned, :]).squeeze(2).split((self.heads, self.kv_heads), -2)
        return query, key, heads[:, :, 0, turned:]

    def whole_heads(self, qkv: torch.Tensor) -> torch.Tensor:
        """The projection [s, b, own rows] with the parts of a shared key/value head put together."""
        if self.sharers == 1:
            return qkv
        part = self.size // self.sharers
        query, own = qkv.split((self.heads * self.size, 2 * part), -1)
        # This mapping gathers anything; its backward sums, since every rank does something else with the whole.
        parts = mpu.gather_from_sequence_parallel_region(own.unsqueeze(0)).unflatten(-1, (2, part))
        head = self.rank // self.sharers
        ours = parts[head * self.sharers : (head + 1) * self.sharers]
        return torch.cat((query, ours.permute(1, 2, 3, 0, 4).flatten(-3)), -1)

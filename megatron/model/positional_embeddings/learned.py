"""Learned absolute positions."""

import torch
import torch.nn.functional as F

from megatron.model.positional_embeddings.base import PositionScheme
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter
from megatron.registry import register


class LearnedPositionalEmbedding(torch.nn.Module):
    """Table of position vectors; `offset` is added to every id (OPT starts at 2).

    Parameter: weight [max_positions, size].
    """

    def __init__(self, max_positions: int, size: int, init_method: InitMethod, offset: int = 0):
        super().__init__()
        self.offset = offset
        self.weight = make_parameter(ParameterSpec((max_positions, size), init_method))
        self.weight.is_table = True

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """int64 [b, s] -> [b, s, size]."""
        return F.embedding(position_ids + self.offset if self.offset else position_ids, self.weight)


@register("positional embedding", "learned")
class Learned(PositionScheme):
    @staticmethod
    def at_embedding(neox_args, size, max_positions, init_method):
        return LearnedPositionalEmbedding(max_positions, size, init_method, neox_args.opt_pos_emb_offset)

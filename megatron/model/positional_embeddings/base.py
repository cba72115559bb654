"""Where a position scheme acts."""

import torch

from megatron.mpu.parameters import InitMethod
from megatron.registry import register


@register("positional embedding", "none")
class PositionScheme:
    """No position information; other schemes override what they need."""

    @staticmethod
    def at_embedding(
        neox_args, size: int, max_positions: int, init_method: InitMethod
    ) -> torch.nn.Module | None:
        """Module mapping position ids int64 [b, s] to [b, s, size], added to the word embeddings; or None."""
        return None

    @staticmethod
    def in_attention(neox_args, head_size: int) -> torch.nn.Module | None:
        """The RotaryEmbedding of an attention layer, or None."""
        return None

    @staticmethod
    def in_scores(neox_args) -> torch.Tensor | torch.nn.Module | None:
        """What an attention layer adds to its scores: the slopes of ALiBi, fp32 [n] for the n heads of this rank, which
        take slope * distance away; or a module that gives the bias [n, *shape] of distances (query position - key
        position >= 0, int64 of any shape); or None."""
        return None

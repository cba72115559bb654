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

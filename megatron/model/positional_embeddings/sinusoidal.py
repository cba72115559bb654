"""Absolute positions as sines and cosines of fixed frequencies (arXiv 1706.03762)."""

import torch

from megatron.model.positional_embeddings.base import PositionScheme
from megatron.model.positional_embeddings.frequencies import inverse_frequencies
from megatron.registry import register


class SinusoidalPositionalEmbedding(torch.nn.Module):
    """A vector for every position: the sines of all its angles, then the cosines.

    Args: dim: features, an even number; precision: dtype of the vectors, which are computed in fp32.
    Buffer: inv_freq [dim/2], for checkpoints only, as casting a model rounds its buffers.
    """

    def __init__(self, dim: int, base: float = 10000, precision: torch.dtype = torch.half):
        super().__init__()
        self.dim, self.base, self.precision = dim, base, precision
        self.register_buffer("inv_freq", inverse_frequencies(dim, base))

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """int64 [b, s] -> [b, s, dim]."""
        frequencies = inverse_frequencies(self.dim, self.base, position_ids.device)
        angles = position_ids.unsqueeze(-1).float() * frequencies
        return torch.cat((angles.sin(), angles.cos()), -1).to(self.precision)


@register("positional embedding", "sinusoidal")
class Sinusoidal(PositionScheme):
    @staticmethod
    def at_embedding(neox_args, size, max_positions, init_method):
        return SinusoidalPositionalEmbedding(size, precision=neox_args.params_dtype)

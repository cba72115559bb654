"""Frequencies of rotary positions."""

from dataclasses import dataclass

import torch


def inverse_frequencies(dim: int, base: float, device: torch.device | None = None) -> torch.Tensor:
    """base^(-2j/dim) for j < dim/2, fp32 [dim/2]."""
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim))


@dataclass(frozen=True)
class Frequencies:
    """Those of the paper (arXiv 2104.09864); a rope scaling overrides what it changes.

    Attributes: dim: rotated features; base: of the wavelengths; longest: max_position_embeddings.
    """

    dim: int
    base: float
    longest: int

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0

    def regime(self, length: int) -> int:
        """A number; lengths for which it is the same have the same frequencies."""
        return 0

    def inverse(self, length: int, device: torch.device | None = None) -> torch.Tensor:
        """Angle per position of each pair of features in a sequence of that length, fp32 [dim/2]."""
        return inverse_frequencies(self.dim, self.base, device)

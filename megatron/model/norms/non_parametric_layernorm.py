"""LayerNorm without parameters (OLMo, arXiv 2402.00838)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron.registry import register


@register("norm", "non_parametric_layernorm")
class NonParametricLayernorm(torch.nn.Module):
    """(x - mean) / sqrt(variance + eps) over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.dim, self.eps = dim, eps

    @classmethod
    def from_config(cls, neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
        """(norm, eps); key layernorm_epsilon."""
        return cls, neox_args.layernorm_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] -> [..., dim]."""
        return F.layer_norm(x, (self.dim,), eps=self.eps)

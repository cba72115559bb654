"""ScaleNorm (arXiv 1910.05895)."""

from collections.abc import Callable

import torch

from megatron.mpu.parameters import ParameterSpec, make_parameter, ones_
from megatron.registry import register


@register("norm", "scalenorm")
class ScaleNorm(torch.nn.Module):
    """g * x / max(|x|, eps) over the last dimension, the length computed in fp32. Parameter: g [1]."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.g = make_parameter(ParameterSpec((1,), ones_))

    @classmethod
    def from_config(cls, neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
        """(norm, eps); key scalenorm_epsilon."""
        return cls, neox_args.scalenorm_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] -> [..., dim]."""
        length = torch.linalg.vector_norm(
            x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float)
        )
        return x * (self.g / length.clamp(min=self.eps)).to(x.dtype)

"""RMSNorm (arXiv 1910.07467)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron.mpu.parameters import ParameterSpec, make_parameter, ones_, zeros_
from megatron.registry import register


@register("norm", "rmsnorm")
class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension, computed in fp32 and given back in the dtype of x.

    Args:
        p: share of the features from which the mean is taken (pRMSNorm); all of them where it is not in (0, 1).
        bias: add a parameter `offset`.
    Parameters: scale [dim]; offset [dim] with `bias`.
    """

    def __init__(self, dim: int, p: float = -1.0, eps: float = 1e-8, bias: bool = False):
        super().__init__()
        self.eps = eps
        self.measured = int(dim * p) if 0.0 < p < 1.0 else dim
        self.scale = make_parameter(ParameterSpec((dim,), ones_))
        self.offset = make_parameter(ParameterSpec((dim,), zeros_)) if bias else None

    @classmethod
    def from_config(cls, neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
        """(norm, eps); key rms_norm_epsilon."""
        return cls, neox_args.rms_norm_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] -> [..., dim]."""
        if self.measured == x.shape[-1]:
            # torch's own form is one kernel where it has one, and keeps fp32 inside.
            normed = F.rms_norm(x, self.scale.shape, self.scale, self.eps)
        else:
            in_full = x.float()
            mean_square = in_full[..., : self.measured].square().mean(-1, keepdim=True)
            normed = (in_full * torch.rsqrt(mean_square + self.eps) * self.scale).to(x.dtype)
        return normed if self.offset is None else normed + self.offset

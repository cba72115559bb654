"""LayerNorm (arXiv 1607.06450)."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron.mpu.parameters import ParameterSpec, make_parameter, ones_, zeros_
from megatron.registry import register


@register("norm", "layernorm")
class LayerNorm(torch.nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension.

    Parameters: weight [size]; bias [size] unless `bias` is False.
    """

    def __init__(self, size: int, eps: float = 1e-5, bias: bool = True):
        super().__init__()
        self.eps = eps
        self.weight = make_parameter(ParameterSpec((size,), ones_))
        self.bias = make_parameter(ParameterSpec((size,), zeros_)) if bias else None

    @classmethod
    def from_config(cls, neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
        """(norm, eps); keys layernorm_epsilon and use_bias_in_norms."""
        return functools.partial(cls, bias=neox_args.use_bias_in_norms), neox_args.layernorm_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

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


class HeadLayerNorm(torch.nn.Module):
    """LayerNorm over the features of each attention head, with a weight of the head's own and no bias.

    Parameter: weight [heads, size], of all heads of the model.
    Args: own: the heads that come in.
    """

    def __init__(self, heads: int, size: int, eps: float, own: slice):
        super().__init__()
        self.size, self.eps, self.own = size, eps, own
        self.weight = make_parameter(ParameterSpec((heads, size), ones_))
        self.weight._no_weight_decay = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., own heads, size] -> the same shape."""
        return F.layer_norm(x, (self.size,), eps=self.eps) * self.weight[self.own]

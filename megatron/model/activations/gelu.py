"""GELU (arXiv 1606.08415): x times the normal distribution function of x."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron.model.activations.select import Activation
from megatron.registry import register

TANH_SCALE = math.sqrt(2.0 / math.pi)
TANH_CUBE = 0.044715


def erf_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU spelled out with erf, for exporters that lack the operator."""
    return x * 0.5 * (torch.erf(x / math.sqrt(2.0)) + 1.0)


def bias_gelu(bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Tanh approximation of GELU at y + bias."""
    return F.gelu(y + bias, approximate="tanh")


def bias_gelu_back(gradient: torch.Tensor, bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Derivative of bias_gelu by y (and by bias, before its sum) times the incoming gradient."""
    x = y + bias
    tanh = torch.tanh(TANH_SCALE * x * (1 + TANH_CUBE * x * x))
    inner = TANH_SCALE * (1 + 3 * TANH_CUBE * x * x)
    return gradient * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner)


class _BiasGelu(torch.autograd.Function):
    """Keeps its inputs only, not the sum."""

    @staticmethod
    def forward(ctx, y, bias):
        ctx.save_for_backward(y, bias)
        return bias_gelu(bias, y)

    @staticmethod
    def backward(ctx, gradient):
        y, bias = ctx.saved_tensors
        by_y = bias_gelu_back(gradient, bias, y)
        return by_y, by_y.sum_to_size(bias.shape)


def bias_gelu_impl(y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """bias_gelu with its analytic derivative."""
    return _BiasGelu.apply(y, bias)


def _make_gelu(neox_args) -> Callable[[torch.Tensor], torch.Tensor]:
    if neox_args.onnx_safe:
        return erf_gelu
    # The linear layer adds the bias inside its matrix product, so what is left of the fusion is the approximation.
    return functools.partial(F.gelu, approximate="tanh" if neox_args.bias_gelu_fusion else "none")


register("activation", "gelu")(Activation(_make_gelu))

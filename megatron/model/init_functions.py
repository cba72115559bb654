"""Initialisation of weights: functions of (fp32 logical tensor, generator), all zero-mean.

Legend: L number of layers, h hidden size (with muP the base model's), std the config key init_method_std. With
use_mup_outer the values are multiplied by mup_init_scale; the rest of muP is megatron/model/mup.py's.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from megatron.model.mup import base_width
from megatron.mpu.parameters import InitMethod
from megatron.registry import lookup, register


def get_init_methods(args) -> tuple[InitMethod, InitMethod]:
    """(for embeddings, qkv, first MLP matrix, untied output; for the matrices that write to the residual stream)."""
    return (
        lookup("init method", args.init_method)(args),
        lookup("init method", args.output_layer_init_method)(args),
    )


def _method(fill: Callable, rms: Callable[[tuple[int, ...]], float], scale: float) -> InitMethod:
    """fill(tensor, generator), and then times `scale`. Its attribute rms tells how large values in a tensor of some
    shape are, the scale aside."""

    def init_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        fill(tensor, generator)
        return tensor if scale == 1.0 else tensor.mul_(scale)

    init_.rms = rms  # type: ignore[attr-defined]
    return init_


def _normal(std: float, use_mup: bool, mup_init_scale: float) -> InitMethod:
    def fill(tensor: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return tensor.normal_(0.0, std, generator=generator)

    return _method(fill, lambda shape: std, mup_init_scale if use_mup else 1.0)


def init_method_normal(sigma: float, use_mup_outer: bool = False, mup_init_scale: float = 1.0) -> InitMethod:
    """N(0, sigma)."""
    return _normal(sigma, use_mup_outer, mup_init_scale)


def scaled_init_method_normal(
    sigma: float,
    num_layers: int,
    use_mup_outer: bool = False,
    mup_init_scale: float = 1.0,
    num_residuals_per_layer: int = 2,
) -> InitMethod:
    """N(0, sigma / sqrt(residual branches of the whole model))."""
    return _normal(sigma / math.sqrt(num_residuals_per_layer * num_layers), use_mup_outer, mup_init_scale)


def small_init_init_method(dim: int, use_mup_outer: bool = False, mup_init_scale: float = 1.0) -> InitMethod:
    """N(0, sqrt(2 / (5 dim))) (arXiv 1910.05895)."""
    return _normal(math.sqrt(2 / (5 * dim)), use_mup_outer, mup_init_scale)


def wang_init_method(
    n_layers: int, dim: int, use_mup_outer: bool = False, mup_init_scale: float = 1.0
) -> InitMethod:
    """N(0, 2 / (n_layers sqrt(dim)))."""
    return _normal(2 / n_layers / math.sqrt(dim), use_mup_outer, mup_init_scale)


def xavier_uniform_init_method(use_mup_outer: bool = False, mup_init_scale: float = 1.0) -> InitMethod:
    """Glorot uniform of the whole matrix."""
    return _from_torch(torch.nn.init.xavier_uniform_, 1.0, _glorot_rms, use_mup_outer, mup_init_scale)


def xavier_normal_init_method(use_mup_outer: bool = False, mup_init_scale: float = 1.0) -> InitMethod:
    """Glorot normal of the whole matrix."""
    return _from_torch(torch.nn.init.xavier_normal_, 1.0, _glorot_rms, use_mup_outer, mup_init_scale)


def _glorot_rms(shape: tuple[int, ...]) -> float:
    return math.sqrt(2 / sum(shape))


def orthogonal_init_method(
    n_layers: int = 1, use_mup_outer: bool = False, mup_init_scale: float = 1.0
) -> InitMethod:
    """Orthogonal matrix times sqrt(2 / n_layers) (arXiv 1312.6120)."""
    gain = math.sqrt(2 / n_layers)

    def rms(shape: tuple[int, ...]) -> float:
        return gain / math.sqrt(max(shape))

    return _from_torch(torch.nn.init.orthogonal_, gain, rms, use_mup_outer, mup_init_scale)


def _from_torch(
    function: Callable,
    gain: float,
    rms: Callable[[tuple[int, ...]], float],
    use_mup: bool,
    mup_init_scale: float,
) -> InitMethod:
    def fill(tensor: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return function(tensor, gain=gain, generator=generator)

    return _method(fill, rms, mup_init_scale if use_mup else 1.0)


def _mup(args) -> dict[str, Any]:
    return {"use_mup_outer": args.use_mup, "mup_init_scale": args.mup_init_scale}


@register("init method", "normal")
def _make_normal(args) -> InitMethod:
    return init_method_normal(args.init_method_std, **_mup(args))


@register("init method", "scaled_normal")
def _make_scaled_normal(args) -> InitMethod:
    return scaled_init_method_normal(args.init_method_std, args.num_layers, **_mup(args))


@register("init method", "single_residual_scaled_normal")
def _make_single_residual_scaled_normal(args) -> InitMethod:
    return scaled_init_method_normal(
        args.init_method_std, args.num_layers, num_residuals_per_layer=1, **_mup(args)
    )


@register("init method", "small_init")
def _make_small_init(args) -> InitMethod:
    return small_init_init_method(base_width(args), **_mup(args))


@register("init method", "wang_init")
def _make_wang_init(args) -> InitMethod:
    return wang_init_method(args.num_layers, base_width(args), **_mup(args))


@register("init method", "xavier_uniform")
def _make_xavier_uniform(args) -> InitMethod:
    return xavier_uniform_init_method(**_mup(args))


@register("init method", "xavier_normal")
def _make_xavier_normal(args) -> InitMethod:
    return xavier_normal_init_method(**_mup(args))


@register("init method", "orthogonal")
def _make_orthogonal(args) -> InitMethod:
    return orthogonal_init_method(**_mup(args))


@register("init method", "scaled_orthogonal")
def _make_scaled_orthogonal(args) -> InitMethod:
    return orthogonal_init_method(args.num_layers, **_mup(args))

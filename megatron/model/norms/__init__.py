"""Normalisation layers, one file per choice of the config key `norm`."""

from megatron.model.norms.layernorm import HeadLayerNorm, LayerNorm
from megatron.model.norms.non_parametric_layernorm import NonParametricLayernorm
from megatron.model.norms.rmsnorm import RMSNorm
from megatron.model.norms.scalenorm import ScaleNorm
from megatron.model.norms.select import get_norm, norm_classes

__all__ = [
    "HeadLayerNorm",
    "LayerNorm",
    "NonParametricLayernorm",
    "RMSNorm",
    "ScaleNorm",
    "get_norm",
    "norm_classes",
]

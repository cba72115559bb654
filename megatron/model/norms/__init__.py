"""Normalisation layers, one file per choice of the config key `norm`."""

from megatron.model.norms.layernorm import LayerNorm
from megatron.model.norms.select import get_norm

__all__ = ["LayerNorm", "get_norm"]

"""Layers of the package transformer_engine under the names by which users import them."""

from megatron.model.norms.transformer_engine import TELayerNorm, TERMSNorm

__all__ = ["TELayerNorm", "TERMSNorm"]

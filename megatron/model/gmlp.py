"""GPT-NeoX's place of the gMLP block."""

from megatron.model.blocks.gmlp import GMLPBlock, SpatialGatingUnit, TinyAttention

__all__ = ["GMLPBlock", "SpatialGatingUnit", "TinyAttention"]

"""RWKV v6."""

from megatron.model.rwkv.v6 import RWKVResidualLayerPipe
from megatron.registry import register

register("block", "rwkv")(RWKVResidualLayerPipe)

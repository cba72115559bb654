"""RWKV v6."""

from megatron.model.rwkv.v6 import RWKVResidualLayerPipe
from megatron.registry import register

register(
    "block",
    "rwkv",
    lacks={
        "norms behind branches": "its norms stand before its two halves",
        "maximal update parametrisation": "its weights have initial values and learning rates of their own",
    },
)(RWKVResidualLayerPipe)

"""Attention: the layer, its kinds (config key `attention_config`) and the back-ends that compute it."""

from megatron.model.attention.kv_cache import KeyValueCache
from megatron.model.attention.self_attention import ParallelSelfAttention

__all__ = ["KeyValueCache", "ParallelSelfAttention"]

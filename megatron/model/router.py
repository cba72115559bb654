"""The routers under the path that GPT-NeoX code imports them from."""

from megatron.model.moe.routers.sinkhorn import SinkhornRouter
from megatron.model.moe.routers.topk import TopKTokenChoiceRouter

__all__ = ["SinkhornRouter", "TopKTokenChoiceRouter"]

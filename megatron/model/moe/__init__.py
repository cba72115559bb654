"""Mixture of experts: an MLP of which every token uses a few parts, chosen by a router."""

from megatron.model.moe.experts import ParallelDroplessMLP
from megatron.model.moe.layer import ParallelDroplessMoE

__all__ = ["ParallelDroplessMLP", "ParallelDroplessMoE"]

"""The experts under the path that GPT-NeoX code imports them from."""

from megatron.model.moe.experts import ParallelGroupedLLaMAMLP, ParallelGroupedMLP

__all__ = ["ParallelGroupedLLaMAMLP", "ParallelGroupedMLP"]

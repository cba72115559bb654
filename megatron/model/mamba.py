"""GPT-NeoX's place of the Mamba block."""

from megatron.model.blocks.mamba import (
    ParallelMambaBlock,
    ParallelMambaResidualLayer,
    ParallelMambaResidualLayerPipe,
)

__all__ = ["ParallelMambaBlock", "ParallelMambaResidualLayer", "ParallelMambaResidualLayerPipe"]

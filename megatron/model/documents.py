"""Documents of a packed sample that are kept apart: their positions travel with the hidden states from block to block.

Positions are int64 [b, s], whole on every rank, and 0 where a document starts. Layers take and give either hidden
states alone, or (hidden states, positions).
"""

import functools
from collections.abc import Callable

import torch

LayerInput = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def with_positions(forward: Callable[..., torch.Tensor]) -> Callable[..., LayerInput]:
    """Make a layer of a block's forward(self, hidden, positions=None) -> hidden."""

    @functools.wraps(forward)
    def layer(self, inputs: LayerInput, *args, **kwargs) -> LayerInput:
        if isinstance(inputs, tuple):
            hidden, positions = inputs
            return forward(self, hidden, positions), positions
        return forward(self, inputs, *args, **kwargs)

    return layer

"""From the config to an activation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron.neox_arguments.mlp_sizes import GATED_ACTIVATIONS
from megatron.registry import lookup

Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Activation:
    """A choice: `make(neox_args)` gives the function [..., f] -> [..., f], or -> [..., f/2] if it is gated."""

    make: Callable[..., Function]


def get_activation(neox_args) -> tuple[Function, bool]:
    """(function, whether it is gated) of the config."""
    name = neox_args.activation
    return lookup("activation", name).make(neox_args), name in GATED_ACTIVATIONS

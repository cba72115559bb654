"""From the config to an activation."""

from collections.abc import Callable
from dataclasses import dataclass

from megatron.registry import lookup


@dataclass(frozen=True)
class Activation:
    """A choice: `make(neox_args)` gives the function; gated ones halve the width."""

    make: Callable[..., Callable]
    gated: bool = False


def get_activation(neox_args) -> tuple[Callable, bool]:
    """(function, whether it is gated) of the config."""
    activation = lookup("activation", neox_args.activation)
    return activation.make(neox_args), activation.gated

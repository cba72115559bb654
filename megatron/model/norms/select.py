"""From the config to a norm."""

from collections.abc import Callable

import torch

from megatron.registry import lookup, names


def get_norm(neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
    """(norm, eps) of the config: norm(size, eps=eps) makes the module."""
    return lookup("norm", neox_args.norm).from_config(neox_args)


def norm_classes() -> tuple[type[torch.nn.Module], ...]:
    """The classes of all choices: their parameters do not decay, and act on a part of the sequence where it is cut."""
    return tuple(lookup("norm", name) for name in names("norm"))

"""From the config to a norm."""

from collections.abc import Callable

import torch

from megatron.registry import lookup


def get_norm(neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
    """(norm, eps) of the config: norm(size, eps=eps) makes the module."""
    return lookup("norm", neox_args.norm).from_config(neox_args)

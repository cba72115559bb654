"""Optimizers by the names of `optimizer.type`. A choice is a function of parameter groups and `optimizer.params`."""

import torch

from megatron.common.errors import ConfigError
from megatron.optimizers.adam import adam_settings
from megatron.optimizers.compiler import keep_compiler_unloaded, step_untraced
from megatron.optimizers.eight_bit import adam_8bit
from megatron.optimizers.lion import Lion
from megatron.optimizers.madgrad_wd import madgrad_wd
from megatron.optimizers.muon import Muon
from megatron.optimizers.sm3 import SM3
from megatron.registry import entry

__all__ = ["SM3", "Lion", "Muon", "build_optimizer", "madgrad_wd"]


def build_optimizer(
    kind: str, param_groups: list[dict], params: dict, weight_decay: float, use_bnb_optimizer: bool = False
) -> torch.optim.Optimizer:
    """Make the optimizer.

    Args: kind: value of `optimizer.type`, any case; params: `optimizer.params` (lr, betas, eps, ...; its weight_decay
    wins over the config's); weight_decay: decay of the groups that do not bring their own; use_bnb_optimizer: Adam with
    8-bit states, whatever the kind.
    """
    keep_compiler_unloaded()
    found = entry("optimizer", kind)
    if found.capabilities.weight_decay:
        params = {"weight_decay": weight_decay, **params}
    if use_bnb_optimizer:
        if not params.get("adam_w_mode", True):
            raise ConfigError(
                "optimizer.params.adam_w_mode: false has no 8-bit form: remove it or use_bnb_optimizer"
            )
        return adam_8bit(param_groups, adam_settings(params))
    return step_untraced(found.value(param_groups, params))

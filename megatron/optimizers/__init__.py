"""Optimizers by the names of `optimizer.type`. A choice is a function of parameter groups and `optimizer.params`."""

import sys

import torch

from megatron.common.errors import ConfigError
from megatron.optimizers.adam import adam_settings
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
    _keep_compiler_unloaded()
    found = entry("optimizer", kind)
    if found.capabilities.weight_decay:
        params = {"weight_decay": weight_decay, **params}
    if use_bnb_optimizer:
        if not params.get("adam_w_mode", True):
            raise ConfigError(
                "optimizer.params.adam_w_mode: false has no 8-bit form: remove it or use_bnb_optimizer"
            )
        return adam_8bit(param_groups, adam_settings(params))
    return found.value(param_groups, params)


def _keep_compiler_unloaded() -> None:
    """Spare a start the second that importing torch's compiler takes.

    torch guards some optimizer methods against being traced and loads the whole compiler for it at their first call.
    Where nothing has loaded it there is nothing to guard against.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        guarded = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if guarded is not None and not hasattr(guarded, "__dynamo_disable"):
            setattr(guarded, "__dynamo_disable", guarded)  # noqa: B010  the attribute torch looks for

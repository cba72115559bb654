"""Optimizers by the names of `optimizer.type`. A choice is a function of parameter groups and `optimizer.params`."""

import sys

import torch

from megatron.registry import lookup

__all__ = ["build_optimizer"]


def build_optimizer(kind: str, param_groups: list[dict], params: dict, weight_decay: float):
    """Make the optimizer.

    Args: kind: value of `optimizer.type`, any case; params: `optimizer.params` (lr, betas, eps, ...; its weight_decay
    wins over the config's); weight_decay: decay of the groups that do not bring their own.
    """
    _keep_compiler_unloaded()
    return lookup("optimizer", kind)(param_groups, {"weight_decay": weight_decay, **params})


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

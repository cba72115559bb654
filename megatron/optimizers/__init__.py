"""Optimizers by the names of `optimizer.type`. A choice is a function of parameter groups and `optimizer.params`."""

from megatron.registry import lookup

__all__ = ["build_optimizer"]


def build_optimizer(kind: str, param_groups: list[dict], params: dict, weight_decay: float):
    """Make the optimizer.

    Args: kind: value of `optimizer.type`, any case; params: `optimizer.params` (lr, betas, eps, ...; its weight_decay
    wins over the config's); weight_decay: decay of the groups that do not bring their own.
    """
    return lookup("optimizer", kind)(param_groups, {"weight_decay": weight_decay, **params})

"""Stochastic gradient descent."""

import torch

from megatron.optimizers.capabilities import Capabilities
from megatron.registry import register


@register("optimizer", "sgd", capabilities=Capabilities(states=1))
def sgd(param_groups: list[dict], params: dict):
    """torch's SGD; takes lr, momentum, dampening, weight_decay, nesterov."""
    return torch.optim.SGD(param_groups, **params)

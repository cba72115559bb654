"""Activations that torch computes in one operation each way."""

import torch
import torch.nn.functional as F

from megatron.model.activations.select import Activation
from megatron.registry import register

register("activation", "relu")(Activation(lambda neox_args: F.relu))
register("activation", "softsign")(Activation(lambda neox_args: F.softsign))
register("activation", "mish")(Activation(lambda neox_args: F.mish))
for _name in ("silu", "swish"):
    register("activation", _name)(Activation(lambda neox_args: F.silu))


def swish(x: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """x times the logistic function of beta x (arXiv 1710.05941)."""
    return F.silu(x) if beta == 1.0 else x * torch.sigmoid(beta * x)


def mish(x: torch.Tensor) -> torch.Tensor:
    """x tanh(softplus(x)) (arXiv 1908.08681)."""
    return F.mish(x)

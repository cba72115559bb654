"""MADGRAD with decoupled weight decay (arXiv:2101.11075): momentumised dual averaging, scaled by a cube root."""

import torch

from megatron.optimizers.capabilities import NO_MUP, Capabilities
from megatron.registry import register


class madgrad_wd(torch.optim.Optimizer):  # noqa: N801  the name that users import
    """With l = lr + eps and a = l * sqrt(k + 1) at step k = 0, 1, ...:

    p <- (1 - l*wd) p; G <- G + a g^2; s <- s + a g; z = x0 - s / (cbrt(G) + eps); p <- momentum*p + (1 - momentum)*z.

    States: grad_sum_sq, s and, unless momentum is 0, x0 (the parameter before its first step), all of the parameter's
    shape; step. Without momentum x0 follows from the parameter, decay included.
    """

    def __init__(
        self, params, lr: float = 1e-2, momentum: float = 0.9, weight_decay: float = 0.0, eps: float = 1e-6
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        momentum, eps, gradient = group["momentum"], group["eps"], parameter.grad
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["grad_sum_sq"] = torch.zeros_like(parameter)
            state["s"] = torch.zeros_like(parameter)
            if momentum:
                state["x0"] = parameter.detach().clone()
        rate = group["lr"] + eps
        weight = rate * (state["step"] + 1) ** 0.5
        state["step"] += 1
        squares, total = state["grad_sum_sq"], state["s"]
        parameter.mul_(1 - rate * group["weight_decay"])
        start = state["x0"] if momentum else parameter.addcdiv(total, _root(squares, eps))
        squares.addcmul_(gradient, gradient, value=weight)
        total.add_(gradient, alpha=weight)
        average = start.addcdiv(total, _root(squares, eps), value=-1)
        parameter.lerp_(average, 1 - momentum)


def _root(squares: torch.Tensor, eps: float) -> torch.Tensor:
    return squares.pow(1 / 3).add_(eps)


@register(
    "optimizer",
    "madgrad_wd",
    capabilities=Capabilities(states=3),
    lacks=NO_MUP,
    example={"optimizer": {"type": "madgrad_wd", "params": {"lr": 1e-2}}},
)
def build(param_groups: list[dict], params: dict):
    return madgrad_wd(param_groups, **params)

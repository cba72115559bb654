"""Lion: the sign of an interpolated momentum (arXiv:2302.06675)."""

import torch

from megatron.common import device
from megatron.optimizers.capabilities import NO_MUP, Capabilities
from megatron.optimizers.fused import fused_or_none
from megatron.registry import register


class Lion(torch.optim.Optimizer):
    """p <- (1 - lr*wd) p - lr * sign(b1*m + (1-b1)*g), then m <- b2*m + (1-b2)*g.

    State: exp_avg, of the parameter's shape.
    """

    def __init__(self, params, lr: float = 1e-4, betas=(0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self.state[parameter]["exp_avg"] for parameter in parameters]
            (first, second), lr = group["betas"], group["lr"]
            updates = torch._foreach_lerp(momenta, gradients, 1 - first)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-lr)
            torch._foreach_lerp_(momenta, gradients, 1 - second)
        return loss


@register("optimizer", "lion", capabilities=Capabilities(states=1), lacks=NO_MUP)
def lion(param_groups: list[dict], params: dict):
    """DeepSpeed's fused kernel on a GPU where it can be built, else Lion above."""
    params = {**params, "betas": tuple(params.get("betas", (0.9, 0.99)))}
    if device.has_accelerator():
        from deepspeed.ops.lion import FusedLion

        if (fused := fused_or_none(FusedLion, param_groups, **params)) is not None:
            return fused
    return Lion(param_groups, **params)

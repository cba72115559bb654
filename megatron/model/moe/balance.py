"""Losses that keep the load of the experts even and their scores small, and what they were.

With f_e the share of the assignments that expert e got (of T tokens times k) and P_e the mean over tokens of its
softmax, the balance loss is E * sum_e f_e P_e (arXiv 2101.03961), 1 at its best. The z-loss is the mean over tokens of
the squared logsumexp of the scores (arXiv 2202.08906).
"""

from collections.abc import Callable

import torch

from megatron import mpu
from megatron.model.moe.routers.base import Routing

METRICS = ("moe balance loss", "moe z loss", "moe max load")


class AddToLoss(torch.autograd.Function):
    """Gives `hidden` unchanged; its backward pass acts as if `loss`, a scalar, had been added to the objective.

    scale: asked in the backward pass for the gradient of what is minimised with respect to such a summand.
    """

    @staticmethod
    def forward(ctx, hidden, loss, scale):
        ctx.scale, ctx.like = scale, (loss.dtype, loss.device)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient):
        dtype, device = ctx.like
        return gradient, torch.full((), ctx.scale(), dtype=dtype, device=device), None


class LoadBalance:
    """The auxiliary losses of one layer, summed over layers by the backward pass, and their running totals.

    Args:
        aux_coeff, z_coeff: weights of the balance loss and of the z-loss in the objective.
        in_fp32: compute the balance loss in fp32 instead of the dtype of the activations.
    Attributes:
        loss_scale: what the engine multiplies the main loss by before its backward pass.
    """

    def __init__(self, aux_coeff: float, z_coeff: float, in_fp32: bool):
        self.aux_coeff, self.z_coeff, self.in_fp32 = aux_coeff, z_coeff, in_fp32
        self.loss_scale: Callable[[], float] = lambda: 1.0
        self._totals: torch.Tensor | None = None

    def __call__(self, hidden: torch.Tensor, routing: Routing) -> torch.Tensor:
        """hidden [T, h] with the losses attached; to be called once per backward pass."""
        load = self._load(routing)
        balance = self._balance(load, routing.logits, hidden.dtype)
        z_loss = torch.logsumexp(routing.logits, dim=-1).square().mean()
        self._record(balance, z_loss, load.max() * load.numel())
        if self.aux_coeff or self.z_coeff:
            loss = self.aux_coeff * balance.float() + self.z_coeff * z_loss
            hidden = AddToLoss.apply(hidden, loss, self._scale)
        return hidden

    def _scale(self) -> float:
        # Every tensor-parallel rank computes the whole loss, and their gradients are summed.
        return self.loss_scale() / mpu.get_model_parallel_world_size()

    @torch.no_grad()
    def _load(self, routing: Routing) -> torch.Tensor:
        """f, fp32 [E]. Where it matters, of all replicas together, which makes the loss that of one large batch
        (arXiv 2501.11873)."""
        chosen = routing.experts.flatten()
        load = torch.zeros(routing.logits.shape[-1], dtype=torch.float32, device=chosen.device)
        load.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float32))
        replicas = mpu.get_data_parallel_world_size()
        if self.aux_coeff and replicas > 1:
            torch.distributed.all_reduce(load, group=mpu.get_data_parallel_group())
            load /= replicas
        return load / chosen.numel()

    def _balance(self, load: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        dtype = torch.float32 if self.in_fp32 else dtype
        probability = torch.softmax(logits, dim=-1).to(dtype).mean(0)
        return load.numel() * (load.to(dtype) * probability).sum()

    def _record(self, *values: torch.Tensor) -> None:
        row = torch.stack([value.detach().float() for value in (*values, torch.ones_like(values[-1]))])
        self._totals = row if self._totals is None else self._totals + row

    def take(self) -> torch.Tensor | None:
        """Sums of METRICS and, last, how many there are, fp32 [4], since the last call; None if nothing was seen."""
        taken, self._totals = self._totals, None
        return taken

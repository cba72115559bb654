"""Experts of a layer: MLPs without biases, divided over the tensor-parallel ranks (dropless, arXiv 2211.15841).

Legend: T tokens, h hidden size, E experts, k experts per token, f width of an expert, tp tensor-parallel degree.
"""

import torch

from megatron import mpu
from megatron.model.activations import get_activation
from megatron.model.moe.grouped import Groups, has_kernel
from megatron.mpu.parameters import InitMethod
from megatron.mpu.utils import divide
from megatron.neox_arguments.experts import expert_width


def _by_expert(init_method: InitMethod, experts: int) -> InitMethod:
    """Each expert's matrix is initialised on its own, as the same matrix of a dense MLP would be."""

    def init_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        for matrix in tensor.chunk(experts):
            init_method(matrix, generator)
        return tensor

    return init_


class ParallelGroupedMLP(torch.nn.Module):
    """activation(x w1^T) w2 for each expert of this rank.

    Parameters: w1, w2 [E*f/tp, h], one expert after the other.
    """

    names = ("w1", "w2")

    def __init__(self, neox_args, init_method: InitMethod, output_layer_init_method: InitMethod):
        super().__init__()
        experts = neox_args.moe_num_experts
        self.activation, _ = get_activation(neox_args)
        self.hidden_size, self.width = neox_args.hidden_size, expert_width(neox_args)
        for name in self.names:
            init = _by_expert(output_layer_init_method if name == "w2" else init_method, experts)
            spec = mpu.ParameterSpec((experts * self.width, self.hidden_size), init, shard_dim=0)
            self.register_parameter(name, mpu.make_parameter(spec))
            getattr(self, name).fused_matrices = (1, experts)

    def matrices(self, name: str) -> torch.Tensor:
        """[E/tp, f, h]."""
        return getattr(self, name).view(-1, self.width, self.hidden_size)

    def inner(self, rows: torch.Tensor, groups: Groups) -> torch.Tensor:
        """[N, h] -> [N, f]."""
        return self.activation(groups.multiply(rows, self.matrices("w1").transpose(1, 2)))

    def forward(self, rows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """rows: [N, h], the sizes[e] rows of expert e (int64 [E/tp]) after those of the experts before it, and then
        rows of other ranks' experts -> [N, h], where rows of others give something undefined."""
        groups = Groups(sizes, has_kernel(rows, self.hidden_size, self.width))
        return groups.multiply(self.inner(rows, groups), self.matrices("w2"))


class ParallelGroupedLLaMAMLP(ParallelGroupedMLP):
    """(activation(x w1^T) * (x w3^T)) w2: the experts of a gated activation.

    Parameters: w1, w3, w2 [E*f/tp, h].
    """

    names = ("w1", "w3", "w2")

    def inner(self, rows: torch.Tensor, groups: Groups) -> torch.Tensor:
        gate = groups.multiply(rows, self.matrices("w1").transpose(1, 2))
        up = groups.multiply(rows, self.matrices("w3").transpose(1, 2))
        return self.activation(torch.cat([up, gate], dim=-1))


class _Rearrange(torch.autograd.Function):
    """rows[take], where every row is taken `copies` times. The gradient is gathered through `back`, the place where
    each copy went, in place of the scattered sum that autograd would do: the same bits at every run."""

    @staticmethod
    def forward(ctx, rows, take, back, copies):
        ctx.save_for_backward(back)
        ctx.copies = copies
        return rows.index_select(0, take)

    @staticmethod
    def backward(ctx, gradient):
        (back,) = ctx.saved_tensors
        gradient = gradient.index_select(0, back)
        if ctx.copies > 1:
            gradient = gradient.view(-1, ctx.copies, gradient.shape[-1]).sum(1)
        return gradient, None, None, None


class ParallelDroplessMLP(torch.nn.Module):
    """Sends tokens to the experts of this rank and adds up what these give; no token is left out, however many choose
    the same expert."""

    def __init__(self, neox_args, init_method: InitMethod, output_layer_init_method: InitMethod):
        super().__init__()
        self.experts = neox_args.moe_num_experts
        size, rank = mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
        self.own = divide(self.experts, size)
        self.first = rank * self.own
        gated = get_activation(neox_args)[1]
        mlp = ParallelGroupedLLaMAMLP if gated else ParallelGroupedMLP
        self.mlp = mlp(neox_args, init_method, output_layer_init_method)

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """tokens [T, h], weights [T, k] and experts int64 [T, k] -> [T, h], the summand of this rank."""
        count, top_k = experts.shape
        # Counted from this rank's first expert, its own come before all others.
        local = (experts.flatten() - self.first) % self.experts
        order = torch.argsort(local, stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        sizes = torch.zeros(self.experts, dtype=torch.int64, device=local.device)
        sizes = sizes.scatter_add_(0, local, torch.ones_like(local))[: self.own]
        rows = self._own(_Rearrange.apply(tokens, order // top_k, place, top_k), sizes)
        outputs = self._own(self.mlp(rows, sizes), sizes)
        by_token = _Rearrange.apply(outputs, place, order, 1).view(count, top_k, -1)
        return (by_token * weights.to(by_token.dtype).unsqueeze(-1)).sum(1)

    def _own(self, rows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Rows with zeros in place of those of other ranks' experts, forward and backward."""
        if self.own == self.experts:
            return rows
        mine = torch.arange(len(rows), device=rows.device) < sizes.sum()
        return torch.where(mine.unsqueeze(-1), rows, torch.zeros_like(rows))

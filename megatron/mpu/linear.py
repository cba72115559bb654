"""The matrix product at the entry of a tensor-parallel region, with its communication hidden behind computation."""

import torch
import torch.nn.functional as F

from megatron.mpu import collectives, state


def linear_into_region(
    input_: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    sequence_parallel: bool = False,
    seq_dim: int = 0,
) -> torch.Tensor:
    """input W^T + bias, where every rank has its own rows of W.

    Args:
        input_: [..., h], the same on all ranks; with sequence_parallel its part along seq_dim, gathered here.
        weight: [o/tp, h]; bias: [o/tp] or None.
    Returns: [..., o/tp] of the whole sequence.
    """
    if state.get_model_parallel_world_size() == 1:
        return F.linear(input_, weight, bias)
    return _LinearIntoRegion.apply(input_, weight, bias, seq_dim if sequence_parallel else None)


class _LinearIntoRegion(torch.autograd.Function):
    """Keeps the cut input and gathers it again in the backward pass (arXiv 2205.05198); the sum of the input's gradient
    over the ranks runs while the weight's gradient is computed."""

    @staticmethod
    def forward(ctx, input_, weight, bias, seq_dim):
        ctx.save_for_backward(input_, weight)
        ctx.seq_dim = seq_dim
        whole = input_ if seq_dim is None else collectives.all_gather(input_, seq_dim)
        output = F.linear(whole, weight, bias)
        # With a bias it is a view, of what nobody else holds, and autograd would let nobody write into it.
        return torch.ops.aten._unsafe_view(output, output.shape)

    @staticmethod
    def backward(ctx, gradient):
        input_, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, _ = ctx.needs_input_grad
        cut = ctx.seq_dim is not None
        gathered = collectives.start_all_gather(input_, ctx.seq_dim) if cut and wants_weight else None
        grad_input = grad_weight = grad_bias = None
        if wants_input:
            partial = gradient.matmul(weight)
            if cut:
                grad_input = collectives.start_reduce_scatter(partial, ctx.seq_dim)
            else:
                grad_input = collectives.start_all_reduce(partial)
        if wants_weight:
            whole = gathered() if gathered is not None else input_
            grad_weight = gradient.flatten(0, -2).t().matmul(whole.flatten(0, -2))
        if wants_bias:
            grad_bias = gradient.flatten(0, -2).sum(0)
        return grad_input() if wants_input else None, grad_weight, grad_bias, None

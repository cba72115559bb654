"""Matrix products: with the kernels that answering wants, and at the entry of a tensor-parallel region, with its
communication hidden behind computation."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from megatron.mpu import collectives, state

_answering = False


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Within the block nothing is learned, and products may be computed by a faster kernel that has no gradient."""
    global _answering
    before, _answering = _answering, True
    try:
        yield
    finally:
        _answering = before


def linear(input_: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """input W^T + bias: [..., h], [o, h], [o] -> [..., o].

    torch gives fp32 products on a CPU to MKL, which is slow with few rows, and on some processors with many. oneDNN,
    which it gives those of bf16 to, is faster with both (tools/benchmarks/generation.py).
    """
    if _answering and weight.dtype == torch.float32 and weight.device.type == "cpu" and _has_onednn():
        return torch.ops.mkldnn._linear_pointwise.default(input_, weight, bias, "none", [], "")
    return F.linear(input_, weight, bias)


def _has_onednn() -> bool:
    """Whether this torch can call it and the user has not switched it off."""
    return torch.backends.mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")


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
        return linear(input_, weight, bias)
    return _LinearIntoRegion.apply(input_, weight, bias, seq_dim if sequence_parallel else None)


class _LinearIntoRegion(torch.autograd.Function):
    """Keeps the cut input and gathers it again in the backward pass (arXiv 2205.05198); the sum of the input's gradient
    over the ranks runs while the weight's gradient is computed."""

    @staticmethod
    def forward(ctx, input_, weight, bias, seq_dim):
        ctx.save_for_backward(input_, weight)
        ctx.seq_dim = seq_dim
        whole = input_ if seq_dim is None else collectives.all_gather(input_, seq_dim)
        output = linear(whole, weight, bias)
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

"""Differentiable moves between tensor-parallel regions; each pairs a forward with its adjoint (arXiv 1909.08053,
sequence-parallel ones arXiv 2205.05198). All are no-ops in a group of one."""

from collections.abc import Callable

import torch

from megatron.mpu import collectives, state


def _identity(tensor: torch.Tensor, _dim: int) -> torch.Tensor:
    return tensor


def _sum(tensor: torch.Tensor, _dim: int) -> torch.Tensor:
    return collectives.all_reduce(tensor)


class _Move(torch.autograd.Function):
    """Applies `forward_move(tensor, dim)` and, to the gradient, `backward_move(gradient, dim)`."""

    @staticmethod
    def forward(ctx, tensor, forward_move: Callable, backward_move: Callable, dim: int):
        ctx.backward_move, ctx.dim = backward_move, dim
        moved = forward_move(tensor, dim)
        return moved.view_as(moved) if moved is tensor else moved

    @staticmethod
    def backward(ctx, gradient):
        return ctx.backward_move(gradient, ctx.dim), None, None, None


def _move(tensor: torch.Tensor, forward_move: Callable, backward_move: Callable, dim: int) -> torch.Tensor:
    if state.get_model_parallel_world_size() == 1:
        return tensor
    return _Move.apply(tensor, forward_move, backward_move, dim)


def copy_to_model_parallel_region(input_: torch.Tensor) -> torch.Tensor:
    """Forward: identity. Backward: sum over the group."""
    return _move(input_, _identity, _sum, 0)


def reduce_from_model_parallel_region(input_: torch.Tensor) -> torch.Tensor:
    """Forward: sum over the group. Backward: identity."""
    return _move(input_, _sum, _identity, 0)


def scatter_to_model_parallel_region(input_: torch.Tensor) -> torch.Tensor:
    """Forward: own part of the last dimension. Backward: gather."""
    return _move(input_, collectives.own_part, collectives.all_gather, -1)


def gather_from_model_parallel_region(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Forward: gather along `dim`. Backward: own part, as every rank does the same with the whole."""
    return _move(input_, collectives.all_gather, collectives.own_part, dim)


def reduce_scatter_to_sequence_parallel_region(input_: torch.Tensor, seq_dim: int = 0) -> torch.Tensor:
    """Forward: own part, along the sequence, of the sum. Backward: gather."""
    return _move(input_, collectives.reduce_scatter, collectives.all_gather, seq_dim)


def gather_from_sequence_parallel_region(input_: torch.Tensor, seq_dim: int = 0) -> torch.Tensor:
    """Forward: gather the sequence. Backward: own part of the sum."""
    return _move(input_, collectives.all_gather, collectives.reduce_scatter, seq_dim)


def scatter_to_sequence_parallel_region(input_: torch.Tensor, seq_dim: int = 1) -> torch.Tensor:
    """Forward: own part of the sequence. Backward: gather."""
    return _move(input_, collectives.own_part, collectives.all_gather, seq_dim)

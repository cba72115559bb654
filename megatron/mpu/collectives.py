"""Plain (not differentiated) collectives over the tensor-parallel group. None of them changes its input.

Each start_* begins the communication and returns a function that waits for it and gives the result, so that work can be
done in between.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron.mpu import state
from megatron.mpu.utils import split_tensor_along_any_dim

# torch 2.13 renames the flat collectives; older versions know the old names only.
_all_gather_flat = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter_flat = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

Finish = Callable[[], torch.Tensor]


def _for_reduction(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in the dtype in which the grid reduces."""
    if state.get_fp32_allreduce() and tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float().contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)


def start_all_reduce(tensor: torch.Tensor, op=dist.ReduceOp.SUM) -> Finish:
    """Sum (or `op`) over the group, as a new tensor of the same shape and dtype."""
    reduced = _for_reduction(tensor)
    work = dist.all_reduce(reduced, op=op, group=state.get_model_parallel_group(), async_op=True)

    def finish() -> torch.Tensor:
        work.wait()
        return reduced.to(tensor.dtype)

    return finish


def start_all_gather(tensor: torch.Tensor, dim: int) -> Finish:
    """Concatenation of all ranks' tensors along `dim`."""
    size = state.get_model_parallel_world_size()
    own = tensor.contiguous()
    gathered = own.new_empty((size, *own.shape))
    group = state.get_model_parallel_group()
    work = _all_gather_flat(gathered.view(-1), own.view(-1), group=group, async_op=True)

    def finish() -> torch.Tensor:
        work.wait()
        if dim % own.dim() == 0:
            return gathered.view(size * own.shape[0], *own.shape[1:])
        return torch.cat(gathered.unbind(0), dim=dim)

    return finish


def start_reduce_scatter(tensor: torch.Tensor, dim: int) -> Finish:
    """The part of this rank, along `dim`, of the sum over the group."""
    group = state.get_model_parallel_group()
    if dist.get_backend(group) == "gloo":
        # gloo implements reduce-scatter through an all-reduce, in the versions that have it at all
        total = start_all_reduce(tensor)
        return lambda: own_part(total(), dim)
    parts = split_tensor_along_any_dim(tensor, state.get_model_parallel_world_size(), dim)
    stacked = _for_reduction(torch.stack(parts) if dim % tensor.dim() else tensor)
    reduced = stacked.new_empty(parts[0].shape)
    work = _reduce_scatter_flat(reduced.view(-1), stacked.view(-1), group=group, async_op=True)

    def finish() -> torch.Tensor:
        work.wait()
        return reduced.to(tensor.dtype)

    return finish


def all_reduce(tensor: torch.Tensor, op=dist.ReduceOp.SUM) -> torch.Tensor:
    """start_all_reduce, waited for."""
    return start_all_reduce(tensor, op)()


def all_gather(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """start_all_gather, waited for."""
    return start_all_gather(tensor, dim)()


def reduce_scatter(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """start_reduce_scatter, waited for."""
    return start_reduce_scatter(tensor, dim)()


def own_part(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The part of this rank along `dim`, contiguous."""
    parts = split_tensor_along_any_dim(tensor, state.get_model_parallel_world_size(), dim)
    return parts[state.get_model_parallel_rank()].contiguous()

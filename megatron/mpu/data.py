"""One rank's batch for its whole tensor-parallel group."""

import torch
import torch.distributed as dist

from megatron.common import device
from megatron.mpu import state

MAX_DIMENSIONS = 3


def broadcast_data(
    keys: list[str], data: dict[str, torch.Tensor] | None, datatype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Give all tensor-parallel ranks the tensors of the group's first rank, on the rank's device.

    Args:
        keys: the entries to send, the same on all ranks.
        data: looked at on the first rank only; every value has dtype `datatype` and at most 3 dimensions.
    """
    place = device.current_device()
    if state.get_model_parallel_world_size() == 1:
        return {key: _checked(data, key, datatype).to(place) for key in keys}
    group, source = state.get_model_parallel_group(), state.get_model_parallel_src_rank()
    sending = state.get_model_parallel_rank() == 0
    shapes = torch.zeros(len(keys), MAX_DIMENSIONS + 1, dtype=torch.int64)
    if sending:
        for row, key in zip(shapes, keys, strict=True):
            shape = _checked(data, key, datatype).shape
            row[0] = len(shape)
            row[1 : 1 + len(shape)] = torch.tensor(shape)
    shapes = shapes.to(place)
    dist.broadcast(shapes, source, group=group)
    sizes = [row[1 : 1 + row[0]] for row in shapes.tolist()]
    counts = [torch.Size(size).numel() for size in sizes]
    if sending:
        flat = torch.cat([data[key].reshape(-1) for key in keys]).to(place)
    else:
        flat = torch.empty(sum(counts), dtype=datatype, device=place)
    dist.broadcast(flat, source, group=group)
    return {key: part.view(size) for key, size, part in zip(keys, sizes, flat.split(counts), strict=True)}


def _checked(data: dict[str, torch.Tensor], key: str, datatype: torch.dtype) -> torch.Tensor:
    tensor = data[key]
    assert tensor.dtype == datatype, f"{key} is {tensor.dtype}, to be sent as {datatype}"
    assert tensor.dim() <= MAX_DIMENSIONS, f"{key} has {tensor.dim()} dimensions, at most {MAX_DIMENSIONS}"
    return tensor

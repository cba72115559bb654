"""Means over what the processes of a job have computed."""

import torch

from megatron import mpu


def mean_over_replicas(values: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Average dicts of scalars over the list and over data-parallel ranks, in one reduction."""
    names = list(values[0])
    stacked = torch.stack([torch.stack([step[name].float() for step in values]).mean() for name in names])
    if mpu.get_data_parallel_world_size() > 1:
        torch.distributed.all_reduce(stacked, group=mpu.get_data_parallel_group())
        stacked /= mpu.get_data_parallel_world_size()
    return dict(zip(names, stacked, strict=True))

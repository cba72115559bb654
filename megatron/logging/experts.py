"""How evenly the experts were used, in the whole model."""

import torch

from megatron import mpu
from megatron.common import device
from megatron.model.moe import ParallelDroplessMoE
from megatron.model.moe.balance import METRICS


def balance_metrics(neox_args, model: torch.nn.Module) -> dict[str, float]:
    """Means since the last call over layers, micro-batches and replicas; {} for a model without experts.

    "moe balance loss" and "moe z loss" without their coefficients; "moe max load": what the busiest expert of a layer
    got, as a multiple of an even share. Collective over all ranks, since pipeline stages hold different layers.
    """
    if neox_args.moe_num_experts == 1:
        return {}
    totals = torch.zeros(len(METRICS) + 1, device=device.current_device())
    for module in model.modules():
        if isinstance(module, ParallelDroplessMoE) and (seen := module.balance.take()) is not None:
            totals += seen
    for group, size in (
        (mpu.get_pipe_parallel_group, mpu.get_pipe_parallel_world_size()),
        (mpu.get_data_parallel_group, mpu.get_data_parallel_world_size()),
    ):
        if size > 1:
            torch.distributed.all_reduce(totals, group=group())
    *sums, count = totals.tolist()
    return {name: value / max(count, 1.0) for name, value in zip(METRICS, sums, strict=True)}

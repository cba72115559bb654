"""Public helper names of GPT-NeoX. Nothing inside the package imports this module."""

import importlib.util
import os
import pdb
import re
import sys

import torch

from megatron import mpu
from megatron.common import device
from megatron.common.console import print_rank_0
from megatron.common.hosts import resource_pool
from megatron.common.timers import Timer, Timers
from megatron.common.wandb_key import get_wandb_api_key
from megatron.engine.characters import CharCounter
from megatron.engine.inference import setup_for_inference_or_eval
from megatron.engine.overflow import OverflowMonitor
from megatron.gradient_noise_scale import GradientNoiseScale
from megatron.logging.report import report_memory
from megatron.logging.sinks.wandb import WandbSink, start_run
from megatron.neox_arguments.attention_types import expand_attention_types
from megatron.objectives.pretrain import positions_and_loss_mask

__all__ = [
    "CharCounter",
    "OverflowMonitor",
    "Timer",
    "Timers",
    "ddb",
    "expand_attention_types",
    "get_attn_mask",
    "get_ltor_masks_and_position_ids",
    "get_noise_scale_logger",
    "get_total_params",
    "get_wandb_api_key",
    "init_wandb",
    "is_bnb_available",
    "is_local_main",
    "is_mp_rank_0",
    "local_rank",
    "make_viewless_tensor",
    "natural_sort",
    "obtain_resource_pool",
    "print_rank_0",
    "reduce_losses",
    "report_memory",
    "setup_for_inference_or_eval",
]


def reduce_losses(losses: list[torch.Tensor]) -> torch.Tensor:
    """Mean over all processes of each of the given scalars, fp32 [len(losses)]."""
    reduced = torch.stack([loss.detach().float().reshape(()) for loss in losses])
    torch.distributed.all_reduce(reduced)
    return reduced / torch.distributed.get_world_size()


def get_attn_mask(
    seq_length: int, device: torch.device | str, sliding_window_width: int | None = None
) -> torch.Tensor:
    """Bool [1, 1, s, s], True where a query (row) must not see a key: later ones, and with a window of width w those
    w or more positions back (arXiv:2310.06825). The model itself needs no such tensor."""
    distance = torch.arange(seq_length, device=device).unsqueeze(1) - torch.arange(seq_length, device=device)
    hidden = distance < 0
    if sliding_window_width is not None:
        hidden |= distance >= sliding_window_width
    return hidden.view(1, 1, seq_length, seq_length)


def get_ltor_masks_and_position_ids(
    data: torch.Tensor, eod_token: int, eod_mask_loss: bool = False, sliding_window_width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(attention mask, loss mask fp32 [b, s], position ids int64 [b, s]) of tokens int64 [b, s]."""
    position_ids, loss_mask = positions_and_loss_mask(data, eod_token, eod_mask_loss)
    return get_attn_mask(data.shape[1], data.device, sliding_window_width), loss_mask, position_ids


def get_noise_scale_logger(neox_args, model) -> GradientNoiseScale | None:
    """One that watches the gradients of a DeepSpeed engine, or None without log_gradient_noise_scale."""
    return GradientNoiseScale.from_config(neox_args, model)


def init_wandb(neox_args) -> None:
    """With use_wandb open a run of Weights & Biases on rank 0, or on all with wandb_init_all_ranks.

    Raises: see megatron.logging.sinks.wandb.start_run.
    """
    if WandbSink.wanted(neox_args, neox_args.rank or 0):
        start_run(neox_args)


def local_rank() -> int:
    """Index of this process on its host."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def is_bnb_available() -> bool:
    """Whether the package of 8-bit optimizers is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def is_local_main() -> bool:
    """Whether this is the first process of its host."""
    return local_rank() == 0


def is_mp_rank_0() -> bool:
    """Whether this is the first rank of its tensor-parallel group."""
    return mpu.get_model_parallel_rank() == 0


def obtain_resource_pool(
    hostfile_path: str | None, include_arg: str | None, exclude_arg: str | None
) -> dict[str, list[int]]:
    """{host: slots} of a hostfile after the include and exclude filters, or of this machine without one."""
    hosts = resource_pool(hostfile_path, include_arg, exclude_arg)
    return hosts or {"localhost": list(range(device.accelerator_count() or 1))}


def natural_sort(l: list[str]) -> list[str]:  # noqa: E741  the public name of the parameter
    """Sorted so that numbers within the strings count as numbers: a2 before a10."""
    return sorted(
        l,
        key=lambda text: [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", text)],
    )


def ddb(rank: int = 0) -> None:
    """Break into the debugger on one rank while the others wait."""
    if torch.distributed.get_rank() == rank:
        debugger = pdb.Pdb()
        debugger.set_trace(sys._getframe().f_back)
    torch.distributed.barrier()


def get_total_params(model: torch.nn.Module) -> int:
    """Number of parameters of the whole model: summed over tensor and pipeline ranks, replicas counted once."""
    own = sum(
        parameter.numel()
        for parameter in model.parameters()
        if not getattr(parameter, "ds_pipe_replicated", False)
        and (parameter.spec.shard_dim is not None or mpu.get_model_parallel_rank() == 0)
    )
    total = torch.tensor([own], dtype=torch.int64, device=device.current_device())
    for group, size in (
        (mpu.get_model_parallel_group, mpu.get_model_parallel_world_size()),
        (mpu.get_pipe_parallel_group, mpu.get_pipe_parallel_world_size()),
    ):
        if size > 1:
            torch.distributed.all_reduce(total, group=group())
    return int(total)


def make_viewless_tensor(inp: torch.Tensor, requires_grad: bool, keep_graph: bool) -> torch.Tensor:
    """The same values in a tensor that is no view of another, so that the other's memory can be freed."""
    if inp._base is None:
        return inp
    if keep_graph:
        return inp.clone()
    return torch.empty(0, dtype=inp.dtype, device=inp.device).set_(inp.detach()).requires_grad_(requires_grad)

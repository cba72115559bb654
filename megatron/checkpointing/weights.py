"""Model weights out of DeepSpeed's files without a DeepSpeed engine: for sampling and evaluation."""

import math
from pathlib import Path

import torch

from megatron import mpu
from megatron.checkpointing.load import check_checkpoint_args, check_layout, choose_checkpoint, saved_iteration
from megatron.checkpointing.safe_engine import load_file
from megatron.common.console import print_rank_0
from megatron.common.errors import CheckpointError


def load_for_inference(neox_args, module: torch.nn.Module, iteration: int | None = None) -> int:
    """Load the weights of a checkpoint into a bare model, whatever ZeRO stage and number of replicas wrote it.

    Args: module: a SequentialWrapper or GPT2ModelPipe; iteration: which checkpoint, None for the newest valid one.
    Returns: the iteration it was saved at.
    Raises: CheckpointError when there is none, or it is damaged, of another model, or split over other numbers of
    tensor-parallel or pipeline ranks.
    """
    tag = choose_checkpoint(neox_args, iteration)
    if tag is None:
        raise CheckpointError(f"load: there is no checkpoint in {neox_args.load}")
    directory = Path(neox_args.load, tag)
    check_layout(neox_args, directory, weights_only=True)
    common = load_file(_model_file(directory))
    check_checkpoint_args(neox_args, common.get("args", {}))
    if neox_args.is_pipe_parallel:
        _load_layers(module, directory)
    else:
        partitioned = _partitioned_weights(directory)
        _load(module, partitioned if partitioned is not None else common["module"], directory)
    print_rank_0(f"loaded weights from {directory}")
    return saved_iteration(common, directory)


def _load(module: torch.nn.Module, state: dict, directory: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory} does not fit the model of the config: {reason}") from error


def _model_file(directory: Path) -> Path:
    """The file of this rank's model-parallel group, which also holds what all files share."""
    rank = mpu.get_pipe_parallel_rank() * mpu.get_model_parallel_world_size() + mpu.get_model_parallel_rank()
    plain = directory / f"mp_rank_{rank:02d}_model_states.pt"
    partitioned = directory / f"zero_pp_rank_0_{plain.name}"
    return partitioned if partitioned.is_file() and not plain.is_file() else plain


def _load_layers(module, directory: Path) -> None:
    """A pipeline's files, one per layer and tensor-parallel rank; a tied layer's file belongs to its first copy."""
    tensor_rank = mpu.get_model_parallel_rank()
    for index, layer in module.named_stage_layers():
        _load(layer, load_file(directory / f"layer_{index:02d}-model_{tensor_rank:02d}-model_states.pt"), directory)


def _partitioned_weights(directory: Path) -> dict[str, torch.Tensor] | None:
    """The fp32 weights of a ZeRO-3 checkpoint, put together from every replica's part; None for other stages.

    Each part holds, per optimizer group, the parameters' shares one after another, every share padded to the same
    length, ceil(elements / replicas).
    """
    tensor_rank = mpu.get_model_parallel_rank()
    states = directory / f"zero_pp_rank_0_mp_rank_{tensor_rank:02d}_model_states.pt"
    if not states.is_file():
        return None
    shapes = load_file(states)["param_shapes"]
    parts = []
    while (path := _optimizer_file(directory, len(parts), tensor_rank)) is not None:
        parts.append(torch.cat([part.flatten() for part in load_file(path)["optimizer_state_dict"]["fp32_flat_groups"]]))
    weights, offset = {}, 0
    for name, shape in (item for group in shapes for item in group.items()):
        share = math.ceil(shape.numel() / len(parts))
        whole = torch.cat([part[offset : offset + share] for part in parts])
        weights[name] = whole[: shape.numel()].view(shape)
        offset += share
    return weights


def _optimizer_file(directory: Path, replica: int, tensor_rank: int) -> Path | None:
    name = f"zero_pp_rank_{replica}_mp_rank_{tensor_rank:02d}_optim_states.pt"
    return next((path for path in (directory / name, directory / f"bf16_{name}") if path.is_file()), None)

"""Resuming: restore weights, optimizer, schedule and random states of a checkpoint into an engine."""

from pathlib import Path

import torch

from megatron.checkpointing import manifest, provenance
from megatron.checkpointing.choose import choose_checkpoint
from megatron.checkpointing.rng import restore_rng_state, saved_rng_state
from megatron.common.console import print_rank_0, warn
from megatron.common.errors import CheckpointError

# Settings of the layout without which DeepSpeed's files of another run cannot be read by this one.
_LAYOUT = ("data_parallel_size", "model_parallel_size", "pipe_parallel_size", "zero_stage")


def load_checkpoint(
    neox_args, model, optimizer=None, lr_scheduler=None, inference: bool = False, iteration: int | None = None
) -> int:
    """Go on from a checkpoint: weights, optimizer, schedule and random states into a DeepSpeed engine.

    Args: inference: the weights into the engine's module are all that is wanted; iteration: the checkpoint to load,
    None takes the newest one that is complete and undamaged.
    Returns: the iteration it was saved at; 0 for a run that starts afresh.
    Raises: CheckpointError when the wanted checkpoint is missing or damaged, or belongs to another model or layout.
    """
    if inference:
        from megatron.checkpointing.weights import load_for_inference

        return load_for_inference(neox_args, model.module, iteration)
    tag = choose_checkpoint(neox_args, iteration)
    if tag is None:
        return 0
    directory = Path(neox_args.load, tag)
    check_layout(neox_args, directory)
    loaded, client_state = model.load_checkpoint(neox_args.load, tag=tag)
    if loaded is None:
        raise CheckpointError(f"load: DeepSpeed could not read {directory}")
    check_checkpoint_args(neox_args, client_state.get("args", {}))
    restore_rng(neox_args, directory, client_state)
    print_rank_0(f"loaded checkpoint {directory}")
    return saved_iteration(client_state, directory)


def saved_iteration(client_state: dict, directory: Path) -> int:
    """The iteration a checkpoint was saved at; older programs called it total_iters."""
    for key in ("iteration", "total_iters"):
        if key in client_state:
            return int(client_state[key])
    raise CheckpointError(f"{directory} does not say which iteration it was saved at")


def restore_rng(neox_args, directory: Path, client_state: dict) -> None:
    """Restore this rank's random states unless the config says not to."""
    if neox_args.no_load_rng or neox_args.finetune:
        return
    state = saved_rng_state(directory, client_state, torch.distributed.get_rank())
    if state is None:
        warn(f"{directory} holds no random states (no_save_rng?): going on with fresh ones")
    else:
        restore_rng_state(state)


def check_checkpoint_args(neox_args, checkpoint_args: dict) -> None:
    """Compare the model settings of a checkpoint with the config's.

    Raises: CheckpointError naming every setting that differs.
    """
    own = provenance.checkpoint_args(neox_args)
    differing = [
        f"{name} is {checkpoint_args[name]} in the checkpoint and {own[name]} in the config"
        for name in own
        if name in checkpoint_args and checkpoint_args[name] != own[name]
    ]
    if differing:
        raise CheckpointError(f"the checkpoint in {neox_args.load} is of another model: " + "; ".join(differing))


def check_layout(neox_args, directory: Path) -> None:
    """Compare model and layout with what the manifest says, before DeepSpeed reads anything.

    Raises: CheckpointError naming the settings that differ.
    """
    description = manifest.read_manifest(directory)
    if description is None:
        return
    check_checkpoint_args(neox_args, description.get("args", {}))
    saved, own = description.get("layout", {}), provenance.layout(neox_args)
    differing = [f"{name} {saved[name]} (now {own[name]})" for name in _LAYOUT if saved.get(name) != own[name]]
    if differing:
        raise CheckpointError(
            f"{directory} was saved with {', '.join(differing)}; resuming its optimizer in another layout is not "
            "supported yet: run with the saved layout, or take the weights only with no_load_optim or finetune"
        )

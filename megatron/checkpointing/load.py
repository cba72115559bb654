"""Resuming: restore weights, optimizer, schedule and random states of a checkpoint into an engine."""

from pathlib import Path

import torch

from megatron.checkpointing import manifest
from megatron.checkpointing.by_name import load_by_name
from megatron.checkpointing.checks import (
    check_checkpoint_args,
    check_has_optimizer,
    layout_changes,
    same_grid,
)
from megatron.checkpointing.choose import choose_checkpoint
from megatron.checkpointing.forward_pass import check_logits
from megatron.checkpointing.model_files import saved_iteration, state_of_this_rank
from megatron.checkpointing.names import RANK_OPTIMIZER_FILES, rank_optimizer_file
from megatron.checkpointing.position import samples_before
from megatron.checkpointing.rng import draw_anew, restore_rng, rng_file
from megatron.checkpointing.safe_engine import load_file
from megatron.checkpointing.saved_config import check_saved_config
from megatron.checkpointing.weights import SavedWeights, load_for_inference
from megatron.common.console import print_rank_0, warn
from megatron.common.errors import CheckpointError


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
        return load_for_inference(neox_args, model.module, iteration)
    tag = choose_checkpoint(neox_args, iteration)
    if tag is None:
        return 0
    directory = Path(neox_args.load, tag)
    model.loaded_from = directory
    if manifest.is_foreign(directory):
        return _load_foreign(neox_args, model, directory)
    changes = layout_changes(neox_args, directory)
    check_has_optimizer(directory)
    check_saved_config(neox_args, directory, resumes=True)
    # Files of the reshaping tool have what is needed by name, but not all that DeepSpeed wants to see.
    by_name = changes or (manifest.read_manifest(directory) or {}).get("reshaped")
    load = _load_in_another_layout if by_name else _load
    client_state = load(neox_args, model, directory)
    for name, part in model.stateful.items():
        if name in client_state:
            part.load_state_dict(client_state[name])
    rounded_otherwise = any(change.startswith("precision") for change in changes)
    if neox_args.checkpoint_validation_with_forward_pass and not rounded_otherwise:
        check_logits(neox_args, model, directory)
    print_rank_0(f"loaded checkpoint {directory}" + (f", saved with {', '.join(changes)}" if changes else ""))
    iteration = saved_iteration(client_state, directory)
    model.samples_before = samples_before(neox_args, directory, client_state, iteration)
    return iteration


def _load_foreign(neox_args, model, directory: Path) -> int:
    """A checkpoint of GPT-NeoX. Returns: the iteration it was saved at."""
    iteration = load_by_name(neox_args, model, directory)["iteration"]
    tensor_size = SavedWeights(directory).tensor_size
    restore_rng(neox_args, directory, state_of_this_rank(directory, tensor_size))
    model.samples_before = samples_before(neox_args, directory, {}, iteration)
    print_rank_0(f"loaded checkpoint {directory}, which GPT-NeoX wrote")
    return iteration


def _load_in_another_layout(neox_args, model, directory: Path) -> dict:
    """Everything by the names of parameters. Returns: what the checkpoint keeps besides."""
    state = load_by_name(neox_args, model, directory)
    if same_grid(neox_args, directory) and rng_file(directory, 0).is_file():
        restore_rng(neox_args, directory, {})
    else:
        draw_anew(neox_args, state["iteration"])
        if any(directory.glob(RANK_OPTIMIZER_FILES)):
            warn(
                "what compressed averages of gradients have left over belongs to another layout: it starts at zero"
            )
    return state


def _load(neox_args, model, directory: Path) -> dict:
    """Everything by DeepSpeed's own means, to the last bit. Returns: what the checkpoint keeps besides."""
    try:
        with model.checkpoint_engine.reading():
            loaded, client_state = model.load_checkpoint(neox_args.load, tag=directory.name)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise CheckpointError(f"the checkpoint in {directory} is of another model: {reasons}") from error
    if loaded is None:
        raise CheckpointError(f"load: DeepSpeed could not read {directory}")
    check_checkpoint_args(neox_args, client_state.get("args", {}))
    restore_rng(neox_args, directory, client_state)
    own = rank_optimizer_file(directory, torch.distributed.get_rank())
    if own.is_file():
        model.optimizer.load_rank_state(load_file(own))
    return client_state

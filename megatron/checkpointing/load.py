"""Loading a checkpoint: choose one that can be believed, compare it with the run, restore."""

from pathlib import Path

import torch

from megatron.checkpointing import manifest, provenance
from megatron.checkpointing.names import get_checkpoint_tag, iteration_of_tag, read_latest, saved_iterations
from megatron.checkpointing.rng import restore_rng_state, saved_rng_state
from megatron.common.console import info, print_rank_0, warn
from megatron.common.errors import CheckpointError

# Settings of the layout without which DeepSpeed's files of another run cannot be read by this one.
_LAYOUT = ("data_parallel_size", "model_parallel_size", "pipe_parallel_size", "zero_stage")


def load_checkpoint(
    neox_args, model, optimizer=None, lr_scheduler=None, inference: bool = False, iteration: int | None = None
) -> int:
    """Load weights, and unless the config says otherwise optimizer, schedule and random states, into an engine.

    Args: iteration: the checkpoint to load; None takes the newest one that is complete and undamaged.
    Returns: the iteration to go on from; 0 for a fine-tuning run and for a run that starts afresh.
    Raises: CheckpointError when the wanted checkpoint is missing or damaged, or belongs to another model or layout.
    """
    tag = choose_checkpoint(neox_args, iteration)
    if tag is None:
        return 0
    directory = Path(neox_args.load, tag)
    weights_only = neox_args.finetune or neox_args.no_load_optim or inference
    check_layout(neox_args, directory, weights_only)
    loaded, client_state = model.load_checkpoint(
        neox_args.load,
        tag=tag,
        load_module_strict=True,
        load_optimizer_states=not weights_only,
        load_lr_scheduler_states=not weights_only,
        load_module_only=weights_only,
    )
    if loaded is None:
        raise CheckpointError(f"load: DeepSpeed could not read {directory}")
    check_checkpoint_args(neox_args, client_state.get("args", {}))
    if not (neox_args.finetune or neox_args.no_load_rng or inference):
        _restore_rng(directory, client_state)
    print_rank_0(f"loaded checkpoint {directory}" + (" (weights only)" if weights_only else ""))
    return 0 if neox_args.finetune else saved_iteration(client_state, directory)


def saved_iteration(client_state: dict, directory: Path) -> int:
    """The iteration a checkpoint was saved at; older programs called it total_iters."""
    for key in ("iteration", "total_iters"):
        if key in client_state:
            return int(client_state[key])
    raise CheckpointError(f"{directory} does not say which iteration it was saved at")


def choose_checkpoint(neox_args, iteration: int | None = None) -> str | None:
    """The tag to load, the same on all ranks; None when a run starts afresh. Rank 0 decides and verifies.

    Raises: CheckpointError if `load` has nothing to offer, unless `load` is also where this run will save.
    """
    if not neox_args.load:
        return None
    decision = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            decision = [_choose(neox_args, iteration), None]
        except CheckpointError as error:
            decision = [None, str(error)]
    torch.distributed.broadcast_object_list(decision, src=0)
    if decision[1] is not None:
        raise CheckpointError(decision[1])
    return decision[0]


def _choose(neox_args, iteration: int | None) -> str | None:
    directory = Path(neox_args.load)
    if iteration is not None:
        return _named_checkpoint(directory, iteration)
    candidates = _candidates(directory)
    if not candidates:
        if neox_args.save and Path(neox_args.save).resolve() == directory.resolve():
            info(f"no checkpoint in {directory} yet: starting from scratch")
            return None
        raise CheckpointError(f"load: there is no checkpoint in {directory}; to start from scratch leave `load` out")
    for tag in candidates:
        problem = manifest.problem(directory / tag)
        if problem is None:
            return tag
        warn(f"not loading {directory / tag}: {problem}; trying the one before it")
    raise CheckpointError(f"load: every checkpoint in {directory} is damaged (the reasons are above)")


def _named_checkpoint(directory: Path, iteration: int) -> str:
    tag = get_checkpoint_tag(iteration)
    available = saved_iterations(directory) if directory.is_dir() else []
    if iteration not in available:
        listed = ", ".join(map(str, available)) or "none"
        raise CheckpointError(f"load: {directory} has no checkpoint of iteration {iteration}; available: {listed}")
    problem = manifest.problem(directory / tag)
    if problem is not None:
        raise CheckpointError(f"load: {directory / tag} is damaged: {problem}")
    return tag


def _candidates(directory: Path) -> list[str]:
    """Tags from the newest to the oldest. A checkpoint without a manifest, of another program, counts only if `latest`
    names it: nothing else says that it is complete."""
    if not directory.is_dir():
        return []
    latest = read_latest(directory)
    tags = [get_checkpoint_tag(iteration) for iteration in reversed(saved_iterations(directory))]
    believable = [tag for tag in tags if tag == latest or (directory / tag / manifest.MANIFEST).is_file()]
    # `latest` may name a folder that is not called global_stepN, as converted checkpoints do ("0").
    if latest and iteration_of_tag(latest) is None and (directory / latest).is_dir():
        believable.insert(0, latest)
    return believable


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


def check_layout(neox_args, directory: Path, weights_only: bool) -> None:
    """Compare model and layout with what the manifest says, before DeepSpeed reads anything.

    Raises: CheckpointError naming the settings that differ.
    """
    description = manifest.read_manifest(directory)
    if description is None:
        return
    check_checkpoint_args(neox_args, description.get("args", {}))
    saved, own = description.get("layout", {}), provenance.layout(neox_args)
    relevant = ("model_parallel_size", "pipe_parallel_size") if weights_only else _LAYOUT
    differing = [f"{name} {saved[name]} (now {own[name]})" for name in relevant if saved.get(name) != own[name]]
    if differing:
        raise CheckpointError(
            f"{directory} was saved with {', '.join(differing)}; resuming in another layout is not supported yet: "
            "run with the saved one"
        )


def _restore_rng(directory: Path, client_state: dict) -> None:
    state = saved_rng_state(directory, client_state, torch.distributed.get_rank())
    if state is None:
        warn(f"{directory} holds no random states (no_save_rng?): going on with fresh ones")
    else:
        restore_rng_state(state)

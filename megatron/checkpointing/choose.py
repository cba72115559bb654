"""Which checkpoint to load: the newest one that can be believed, or the one asked for if it can be."""

from collections.abc import Callable
from pathlib import Path

import torch

from megatron.checkpointing import manifest
from megatron.checkpointing.fetch import fetch_checkpoint
from megatron.checkpointing.names import (
    LATEST,
    WEIGHT_FILES,
    get_checkpoint_tag,
    iteration_of_tag,
    read_latest,
    saved_iterations,
)
from megatron.common.console import info, warn
from megatron.common.errors import CheckpointError


def choose_checkpoint(neox_args, iteration: int | None = None) -> str | None:
    """The tag to load, the same on all ranks; None when a run starts afresh. Rank 0 says what comes into question, and
    every rank verifies a share of the files.

    Raises: CheckpointError if `load` has nothing to offer, unless `load` is also where this run will save.
    """
    fetch_checkpoint(neox_args, iteration)
    if not neox_args.load:
        return None
    offer: list = [[], None]
    if torch.distributed.get_rank() == 0:
        try:
            offer = [_offered(neox_args, iteration), None]
        except CheckpointError as error:
            offer = [[], str(error)]
    torch.distributed.broadcast_object_list(offer, src=0)
    tags, refusal = offer
    if refusal is not None:
        raise CheckpointError(refusal)
    return _first_undamaged(Path(neox_args.load), tags, iteration is not None, _problem)


def _first_undamaged(
    directory: Path, tags: list[str], by_name: bool, problem_of: Callable[[Path], str | None]
) -> str | None:
    """Raises: CheckpointError if all are damaged."""
    for tag in tags:
        problem = problem_of(directory / tag)
        if problem is None:
            return tag
        if by_name:
            raise CheckpointError(f"load: {directory / tag} cannot be used: {problem}")
        warn(f"not loading {directory / tag}: {problem}; trying the one before it")
    if tags:
        raise CheckpointError(f"load: no checkpoint in {directory} can be used (the reasons are above)")
    return None


def _problem(directory: Path) -> str | None:
    """What is wrong with a checkpoint, of which every rank looks at a share; collective, the same on all ranks."""
    ranks = torch.distributed.get_world_size()
    found: list[str | None] = [None] * ranks
    own = manifest.problem(directory, torch.distributed.get_rank(), ranks)
    torch.distributed.all_gather_object(found, own)
    return next((problem for problem in found if problem is not None), None)


def _offered(neox_args, iteration: int | None) -> list[str]:
    """Tags in the order in which they are to be tried; none when the run starts afresh."""
    directory = Path(neox_args.load)
    if iteration is not None:
        return [_named_checkpoint(directory, iteration)]
    candidates = _candidates(directory)
    if not candidates:
        if unnamed := saved_iterations(directory) if directory.is_dir() else []:
            raise CheckpointError(
                f"load: {directory} has no file `latest` that names one of its checkpoints ("
                f"{', '.join(map(str, unnamed))}), so that none is known to be complete: choose one with --iteration"
            )
        if reason := _of_another_kind(directory):
            raise CheckpointError(f"load: {directory} {reason}")
        if neox_args.save and Path(neox_args.save).resolve() == directory.resolve():
            info(f"no checkpoint in {directory} yet: starting from scratch")
            return []
        raise CheckpointError(
            f"load: there is no checkpoint in {directory}; correct the path (to train from scratch leave `load` out)"
        )
    return candidates


def _of_another_kind(directory: Path) -> str | None:
    """What a folder is, and what to do about it, that is mistaken for one of checkpoints."""
    if any(directory.glob(WEIGHT_FILES)):
        return "is a checkpoint itself: name the folder that holds it, and choose it there by --iteration"
    if (directory / "config.json").is_file():
        return "is a Hugging Face model: turn it into a checkpoint with tools/ckpts/convert_hf_to_neox.py"
    return None


def _named_checkpoint(directory: Path, iteration: int) -> str:
    tag = get_checkpoint_tag(iteration)
    available = saved_iterations(directory) if directory.is_dir() else []
    if iteration not in available:
        listed = ", ".join(map(str, available)) or "none"
        raise CheckpointError(
            f"load: {directory} has no checkpoint of iteration {iteration}; available: {listed}"
        )
    return tag


def _candidates(directory: Path) -> list[str]:
    """Tags in the order in which they are to be tried.

    A checkpoint without a manifest, of another program, counts only if `latest` names it: nothing else says that it is
    complete. What `latest` names comes before later iterations, which belong to a run that was given up for an earlier
    checkpoint; unless they were completed after `latest` was written, by a run that died before it could name them.
    """
    if not directory.is_dir():
        return []
    latest = read_latest(directory)
    tags = [get_checkpoint_tag(iteration) for iteration in reversed(saved_iterations(directory))]
    believable = [tag for tag in tags if tag == latest or (directory / tag / manifest.MANIFEST).is_file()]
    if not latest or not (directory / latest).is_dir():
        return believable
    named = iteration_of_tag(latest)
    if named is None:
        # Converted checkpoints are not called global_stepN ("0").
        return [latest, *believable]
    written = (directory / LATEST).stat().st_mtime
    given_up = [
        tag
        for tag in believable
        if iteration_of_tag(tag) > named and not manifest.completed_at(directory / tag) > written
    ]
    return [tag for tag in believable if tag not in given_up] + given_up

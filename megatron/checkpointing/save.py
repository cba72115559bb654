"""Saving a checkpoint, in small steps: write into a temporary sibling, sum up, rename, point `latest` at it."""

import os
import time
from pathlib import Path

import torch

from megatron.checkpointing import manifest, provenance
from megatron.checkpointing.forward_pass import save_logits
from megatron.checkpointing.names import (
    LATEST,
    get_checkpoint_tag,
    partial_tag,
    rank_optimizer_file,
    saved_iterations,
)
from megatron.checkpointing.parameter_table import parameter_table
from megatron.checkpointing.retention import delete_abandoned_saves, delete_old_checkpoints
from megatron.checkpointing.rng import collect_rng_state, rng_file
from megatron.common.console import human_bytes, info, warn
from megatron.common.errors import CheckpointError
from megatron.common.files import atomic_write_text, fsync_directory, fsync_file, remove

ATTEMPTS = 3
PAUSE_SECONDS = 1.0


def save_checkpoint(neox_args, iteration: int, model, optimizer=None, lr_scheduler=None) -> bool:
    """Save a checkpoint, retrying a failed write, then delete those that `keep_last_n_checkpoints` no longer covers.

    Called by all ranks. A failure leaves the previous checkpoints as they were.
    Returns: whether the checkpoint is there.
    """
    start = time.monotonic()
    failure = None
    for attempt in range(ATTEMPTS):
        # What passes by itself, as on a network file system, takes a moment.
        time.sleep(PAUSE_SECONDS * bool(attempt))
        failure = save_ds_checkpoint(iteration, model, neox_args)
        if failure is None:
            break
    if failure is not None:
        warn(f"iteration {iteration} could not be saved in {ATTEMPTS} attempts: {failure}")
        return False
    if torch.distributed.get_rank() == 0:
        directory = Path(neox_args.save, get_checkpoint_tag(iteration))
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        info(f"saved checkpoint {directory} ({human_bytes(size)} in {time.monotonic() - start:.1f} s)")
        delete_abandoned_saves(neox_args.save)
        if neox_args.keep_last_n_checkpoints:
            delete_old_checkpoints(neox_args.save, neox_args.keep_last_n_checkpoints)
    torch.distributed.barrier()
    return True


def save_ds_checkpoint(iteration: int, model, neox_args) -> str | None:
    """Write one checkpoint through DeepSpeed.

    Returns: None, or what went wrong on the first rank that failed.
    """
    root = Path(neox_args.save)
    partial = root / partial_tag(iteration)
    failure = _on_rank_0(lambda: _prepare(root, partial))
    if failure is not None:
        return failure
    client_state = {"iteration": iteration, "args": provenance.checkpoint_args(neox_args)}
    client_state |= parameter_table(model)
    client_state |= {name: part.state_dict() for name, part in model.stateful.items()}
    if not neox_args.no_save_rng:
        client_state |= collect_rng_state()
    storage = model.checkpoint_engine
    model.save_checkpoint(str(root), tag=partial.name, client_state=client_state, save_latest=False)
    if not neox_args.no_save_rng:
        # The shared files hold the generators of one rank per model-parallel group; every replica needs its own.
        storage.save(collect_rng_state(), str(rng_file(partial, torch.distributed.get_rank())))
    own = getattr(model.optimizer, "rank_state", dict)()
    if own:
        storage.save(own, str(rank_optimizer_file(partial, torch.distributed.get_rank())))
    if neox_args.checkpoint_validation_with_forward_pass:
        save_logits(neox_args, model, partial)
    failure = _first_failure(storage.failure)
    if failure is None:
        failure = _seal(neox_args, iteration, root, partial)
    if failure is not None:
        _on_rank_0(lambda: remove(partial))
    return failure


def check_save_directory(directory: str) -> None:
    """Find out before training whether checkpoints can be written.

    Raises: CheckpointError if not.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        probe = Path(directory, f".probe_{os.getpid()}")
        probe.write_text("", encoding="ascii")
        probe.unlink()
    except OSError as problem:
        raise CheckpointError(
            f"save: cannot write into {directory} ({problem.strerror}); choose another folder or mend its permissions"
        ) from problem


def warn_of_later_checkpoints(neox_args, iteration: int) -> None:
    """Say, at the start of a run, that the place to save to holds what this run does not go on from."""
    later = [other for other in saved_iterations(neox_args.save) if other > iteration]
    if later:
        warn(
            f"save: {neox_args.save} holds checkpoints of later iterations ({', '.join(map(str, later))}) than "
            f"{iteration}, where this run starts; it replaces those it reaches, and `latest` will name its own"
        )


def _prepare(root: Path, partial: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    remove(partial)
    partial.mkdir()


def _seal(neox_args, iteration: int, root: Path, partial: Path) -> str | None:
    """Sum up the files, put the folder in place, and only then let `latest` name it."""
    failure = _on_rank_0(lambda: provenance.write_configs(neox_args, partial))
    if failure is not None:
        return failure
    files, failure = _file_records(partial)
    if failure is not None:
        return failure

    def publish() -> None:
        manifest.write_manifest(partial, files, provenance.description(neox_args, iteration))
        final = root / get_checkpoint_tag(iteration)
        replaced = root / f".{final.name}.replaced"
        remove(replaced)
        if final.exists():
            os.rename(final, replaced)
        os.rename(partial, final)
        fsync_directory(root)
        atomic_write_text(root / LATEST, final.name)
        remove(replaced)

    return _on_rank_0(publish)


def _file_records(directory: Path) -> tuple[dict, str | None]:
    """Sizes and checksums of all files, the work shared out over the ranks; every file is made durable on the way."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    records, failure = {}, None
    try:
        for name in manifest.content_files(directory)[rank::size]:
            fsync_file(directory / name)
            records[name] = manifest.file_record(directory / name)
    except OSError as problem:
        failure = str(problem)
    gathered = [None] * size
    torch.distributed.all_gather_object(gathered, (records, failure))
    failures = [problem for _, problem in gathered if problem is not None]
    merged = {name: record for part, _ in gathered for name, record in part.items()}
    return merged, failures[0] if failures else None


def _on_rank_0(action) -> str | None:
    """Run `action` on rank 0 while the others wait; all learn of its failure."""
    failure = None
    if torch.distributed.get_rank() == 0:
        try:
            action()
        except OSError as problem:
            failure = str(problem)
    return _first_failure(failure)


def _first_failure(own: str | None) -> str | None:
    gathered = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return next((failure for failure in gathered if failure is not None), None)

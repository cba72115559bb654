"""Saving a checkpoint, in small steps: write into a temporary sibling, sum up, rename, point `latest` at it."""

import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.checkpointing import manifest, provenance
from megatron.checkpointing.background import Job
from megatron.checkpointing.forward_pass import save_logits
from megatron.checkpointing.names import (
    LATEST,
    get_checkpoint_tag,
    partial_tag,
    rank_optimizer_file,
    replaced_tag,
    saved_iterations,
)
from megatron.checkpointing.parameter_table import parameter_table
from megatron.checkpointing.position import SAMPLES, samples_read
from megatron.checkpointing.remote import RemoteTree, upload_files, upload_rest
from megatron.checkpointing.retention import delete_abandoned_saves, delete_old_checkpoints
from megatron.checkpointing.rng import collect_rng_state, rng_file
from megatron.checkpointing.writing import ATTEMPTS, retried
from megatron.common.console import human_bytes, info, warn
from megatron.common.files import atomic_write_text, fsync_directory, fsync_file, remove


@dataclass(frozen=True)
class Outcome:
    """What became of a save. iteration: which it was of; saved: whether its checkpoint is there."""

    iteration: int
    saved: bool


class _RunningSave:
    """A save that may still be going on: a generator that yields the jobs it has to wait for."""

    def __init__(self, stages: Generator[Job, None, Outcome]):
        self._stages = stages
        self._job: Job | None = None

    def advance(self, wait: bool) -> Outcome | None:
        """Go as far as possible without waiting, or to the end; collective. Returns: None as long as it goes on."""
        try:
            while self._job is None or self._job.finished(wait):
                self._job = next(self._stages)
        except StopIteration as end:
            return end.value
        return None


def save_checkpoint(neox_args, iteration: int, model, optimizer=None, lr_scheduler=None) -> bool:
    """Save a checkpoint, retrying what fails, then delete those that `keep_last_n_checkpoints` no longer covers.

    Called by all ranks. A failure leaves the previous checkpoints as they were. With `async_save` the state is copied
    and the rest happens beside the training: `follow_save` must be called after every step and at the end. A save that
    is still going on is waited for first, so that there is never more than one.
    Returns: whether the checkpoint is there, or on its way.
    """
    follow_save(model, wait=True)
    model.checkpoint_engine.saving = _RunningSave(_stages(neox_args, iteration, model))
    outcome = follow_save(model, wait=not neox_args.async_save)
    return outcome is None or outcome.saved


def follow_save(model, wait: bool = False) -> Outcome | None:
    """See to a save in the background, without waiting unless told to; all ranks at the same points.

    Returns: what became of a save that has just come to its end; None if there is none, or it goes on.
    """
    storage = model.checkpoint_engine
    outcome = None if storage.saving is None else storage.saving.advance(wait)
    if outcome is not None:
        storage.saving = None
    return outcome


def save_ds_checkpoint(iteration: int, model, neox_args) -> str | None:
    """Write one checkpoint through DeepSpeed, and wait for it.

    Returns: None, or what went wrong on the first rank that failed.
    """
    failure = _collect(neox_args, iteration, model, deferred=False)
    return failure if failure is not None else _seal(neox_args, iteration, model)


def _stages(neox_args, iteration: int, model) -> Generator[Job, None, Outcome]:
    """A save from the beginning to the end, on the thread of the training; it yields what runs beside that."""
    start = time.monotonic()
    storage, where = model.checkpoint_engine, ""
    failure = _collect(neox_args, iteration, model, deferred=neox_args.async_save)
    if failure is None and neox_args.async_save:
        stall, where = time.monotonic() - start, " in the background"
        info(f"saving iteration {iteration} in the background; copying it took {stall:.2f} s")
        yield Job(storage.write_deferred, storage.group)
    if neox_args.async_save:
        storage.host_memory.release()
    if failure is None:
        failure = _seal(neox_args, iteration, model)
    if failure is not None:
        _on_rank_0(lambda: remove(Path(neox_args.save, partial_tag(iteration))))
        warn(f"iteration {iteration} could not be saved in {ATTEMPTS} attempts: {failure}")
        return Outcome(iteration, False)
    directory = Path(neox_args.save, get_checkpoint_tag(iteration))
    if torch.distributed.get_rank() == 0:
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        seconds = time.monotonic() - start
        info(f"saved checkpoint {directory} ({human_bytes(size)} in {seconds:.1f} s{where})")
        delete_abandoned_saves(neox_args.save)
    if neox_args.s3_path:
        failure = yield from _upload(neox_args, directory, storage)
        if failure is not None:
            warn(f"{directory} could not be uploaded and stays on the disk: {failure}")
    if torch.distributed.get_rank() == 0 and neox_args.keep_last_n_checkpoints:
        uploaded = RemoteTree.of_run(neox_args).holds if neox_args.s3_path else None
        delete_old_checkpoints(neox_args.save, neox_args.keep_last_n_checkpoints, uploaded)
    torch.distributed.barrier(group=storage.group)
    return Outcome(iteration, True)


def _upload(neox_args, directory: Path, storage) -> Generator[Job, None, str | None]:
    """Every rank uploads the files that it has written, rank 0 the others, then the manifest and `latest`.

    Returns: None, or what went wrong on the first rank that failed.
    """
    own = sorted(Path(path).name for path in storage.records)
    job = Job(lambda: upload_files(neox_args, directory, own), storage.group)
    yield job
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, (own, job.result), group=storage.group)
    failure = next((failure for _, failure in gathered if failure is not None), None)
    if failure is not None:
        return failure
    uploaded = {name for names, _ in gathered for name in names}
    first = torch.distributed.get_rank() == 0
    job = Job(lambda: upload_rest(neox_args, directory, uploaded) if first else None, storage.group)
    yield job
    return _first_failure(job.result, storage.group)


def _collect(neox_args, iteration: int, model, deferred: bool) -> str | None:
    """Write the files of all ranks through DeepSpeed, or copy what is to be written.

    Returns: None, or what went wrong on the first rank that failed.
    """
    root = Path(neox_args.save)
    partial = root / partial_tag(iteration)
    storage, rank = model.checkpoint_engine, torch.distributed.get_rank()
    storage.begin(deferred)
    failure = _on_rank_0(lambda: _prepare(root, partial))
    if failure is not None:
        return failure
    client_state = {"iteration": iteration, "args": provenance.checkpoint_args(neox_args)}
    client_state[SAMPLES] = samples_read(neox_args, model, iteration)
    client_state |= parameter_table(model)
    client_state |= {name: part.state_dict() for name, part in model.stateful.items()}
    if not neox_args.no_save_rng:
        client_state |= collect_rng_state()
    model.save_checkpoint(str(root), tag=partial.name, client_state=client_state, save_latest=False)
    if not neox_args.no_save_rng:
        # The shared files hold the generators of one rank per model-parallel group; every replica needs its own.
        storage.save(collect_rng_state(), str(rng_file(partial, rank)))
    own = None if neox_args.no_save_optim else getattr(model.optimizer, "rank_state", dict)()
    if own:
        storage.save(own, str(rank_optimizer_file(partial, rank)))
    if neox_args.checkpoint_validation_with_forward_pass:
        save_logits(neox_args, model, partial)
    return _first_failure(storage.failure)


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


def _seal(neox_args, iteration: int, model) -> str | None:
    """Sum up the files that all ranks have written, put the folder in place, and only then let `latest` name it."""
    root = Path(neox_args.save)
    partial = root / partial_tag(iteration)
    storage = model.checkpoint_engine
    records = {str(Path(path).relative_to(partial)): record for path, record in storage.records.items()}
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, (records, storage.failure), group=storage.group)
    failures = [failure for _, failure in gathered if failure is not None]
    if failures:
        return failures[0]

    def sum_up() -> None:
        provenance.write_configs(neox_args, partial)
        files = {name: record for part, _ in gathered for name, record in part.items()}
        for name in manifest.content_files(partial):
            if name not in files:
                fsync_file(partial / name)
                files[name] = manifest.file_record(partial / name)
        manifest.write_manifest(partial, files, provenance.description(neox_args, iteration))

    failure = _on_rank_0(sum_up, storage.group)
    if failure is not None:
        return failure
    return _on_rank_0(lambda: _publish(root, partial, get_checkpoint_tag(iteration)), storage.group)


def _publish(root: Path, partial: Path, tag: str) -> None:
    """Put a complete folder in place; may be repeated after a failure anywhere in it."""
    final, replaced = root / tag, root / replaced_tag(tag)
    if partial.exists():
        if final.exists():
            remove(replaced)
            os.rename(final, replaced)
        os.rename(partial, final)
    fsync_directory(root)
    atomic_write_text(root / LATEST, tag)
    remove(replaced)


def _on_rank_0(action: Callable[[], None], group=None) -> str | None:
    """Run `action` on rank 0, again if it fails, while the others wait; all learn of its failure."""
    failure = None
    if torch.distributed.get_rank() == 0:
        try:
            retried(action)
        except OSError as problem:
            failure = str(problem)
    return _first_failure(failure, group)


def _first_failure(own: str | None, group=None) -> str | None:
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own, group=group)
    return next((failure for failure in gathered if failure is not None), None)

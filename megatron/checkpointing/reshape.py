"""A checkpoint written anew for another layout, file by file, without the model and without its memory."""

import functools
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.checkpointing import manifest
from megatron.checkpointing.forward_pass import LOGITS_FILE
from megatron.checkpointing.model_files import saved_iteration
from megatron.checkpointing.names import LATEST, partial_tag
from megatron.checkpointing.saved_config import CONFIG
from megatron.checkpointing.source_tree import SourceTree
from megatron.checkpointing.streamed_file import write_streamed
from megatron.checkpointing.target_tree import Layout, TargetTree
from megatron.common.console import Progress
from megatron.common.errors import CheckpointError
from megatron.common.files import atomic_write_text, fsync_directory, fsync_file, make_folder, remove, writing
from megatron.mpu import ParameterSpec

SMALLEST_BUDGET = 32 << 20  # bytes
# Bytes that take longer to copy than a process takes to start.
WORTH_A_PROCESS = 1 << 30


@dataclass(frozen=True)
class Task:
    """What all files of a reshaped checkpoint have in common; specs, parallel_residual: see SourceTree."""

    source: Path
    layout: Layout
    with_optimizer: bool = True
    specs: Mapping[str, ParameterSpec] | None = None
    parallel_residual: bool = False

    def open(self) -> TargetTree:
        source = SourceTree(self.source, self.layout.tensor, self.specs, self.parallel_residual)
        iteration = saved_iteration(source.description or source.state, self.source)
        return TargetTree(source, self.layout, iteration, self.with_optimizer)


def reshape(task: Task, root: Path, jobs: int = 0) -> Path:
    """Write the checkpoint `task.source` for another layout into a folder of the same name in `root`.

    Args: jobs: processes that write files at the same time; 0 for what its size and the cores (at most 8) suggest.
    Returns: the new checkpoint's folder. It appears whole or not at all, and `latest` names it.
    Raises: CheckpointError if the source is damaged or cannot be read, or the target is there already.
    """
    problem = manifest.problem(task.source)
    if problem is not None:
        raise CheckpointError(f"{task.source} cannot be used: {problem}")
    tree = task.open()
    final, partial = root / task.source.name, root / partial_tag(tree.iteration)
    if final.exists():
        raise CheckpointError(f"{final} is there already; choose another folder, or remove it")
    make_folder(root, "output")
    remove(partial)
    try:
        with writing(root):
            partial.mkdir()
            records = _write_all(task, partial, list(tree.files()), jobs)
            _copy_rest(task, partial)
            for name in manifest.content_files(partial):
                if name not in records:
                    fsync_file(partial / name)
                    records[name] = manifest.file_record(partial / name)
            manifest.write_manifest(partial, records, _description(task, tree))
            os.rename(partial, final)
            fsync_directory(root)
            atomic_write_text(root / LATEST, final.name)
    finally:
        remove(partial)
    return final


def _write_all(task: Task, directory: Path, names: list[str], jobs: int) -> dict[str, dict]:
    """{file name: size and checksum} of files written by several processes."""
    size = sum(path.stat().st_size for path in task.source.glob("*.pt"))
    jobs = min(jobs or min(os.cpu_count() or 1, 8, 1 + size // WORTH_A_PROCESS), len(names))
    records = {}
    with Progress(len(names), "files", "reshaping") as progress:
        if jobs == 1:
            for name in names:
                records[name] = _write(task, directory, name)
                progress.update(1)
            return records
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            written = pool.map(functools.partial(_write, task, directory), names)
            for name, record in zip(names, written, strict=True):
                records[name] = record
                progress.update(1)
    return records


_opened: dict[str, TargetTree] = {}


def _write(task: Task, directory: Path, name: str) -> dict:
    """Write one file. Returns: its size and checksum."""
    key = str(directory)
    if key not in _opened:
        _opened.clear()
        _opened[key] = task.open()
    tree = _opened[key]
    largest = max(torch.Size(spec.logical_shape).numel() for spec in tree.source.specs.values())
    write_streamed(
        directory / name, tree.files()[name](), max(SMALLEST_BUDGET, 16 * largest), tree.source.reopen
    )
    fsync_file(directory / name)
    return manifest.file_record(directory / name)


def _copy_rest(task: Task, directory: Path) -> None:
    """The configs; and the random states if every process goes on computing what it has computed."""
    saved = (manifest.read_manifest(task.source) or {}).get("layout", {})
    logits = [LOGITS_FILE] if saved.get("precision") == task.layout.precision else []
    for name in (CONFIG, "configs", *logits):
        path = task.source / name
        if path.is_dir():
            shutil.copytree(path, directory / name)
        elif path.is_file():
            shutil.copy(path, directory / name)
    layout = task.layout
    before = [saved.get(f"{kind}_parallel_size", 0) for kind in ("data", "model", "pipe")]
    now = [layout.data, layout.tensor, layout.pipe]
    if [max(1, size) for size in before] == [max(1, size) for size in now]:
        for path in task.source.glob("rng_rank_*.pt"):
            shutil.copy(path, directory / path.name)


def _description(task: Task, tree: TargetTree) -> dict:
    layout = task.layout
    kept = {key: value for key, value in tree.source.description.items() if key not in ("files", "version")}
    rows = [spec.logical_shape[0] for spec in tree.source.specs.values() if spec.vocabulary]
    args = {**tree.source.args, "model_parallel_size": layout.tensor}
    return kept | {
        "iteration": tree.iteration,
        "created": time.strftime(manifest.TIME_FORMAT),
        # Its states are looked up by name even where a run has this very layout.
        "reshaped": True,
        "optimizer": task.with_optimizer,
        "vocabulary": tree.source.rows,
        "args": args | ({"padded_vocab_size": rows[0]} if rows else {}),
        "layout": {
            "data_parallel_size": layout.data,
            "model_parallel_size": layout.tensor,
            "pipe_parallel_size": layout.pipe,
            "zero_stage": layout.zero,
            "precision": layout.precision,
            "world_size": layout.data * layout.tensor * max(1, layout.pipe),
        },
    }

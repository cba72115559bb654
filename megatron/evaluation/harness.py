"""lm-evaluation-harness: its tasks, its evaluator, its results. What is here runs on global rank 0."""

import contextlib
import functools
import random
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron.common.device import current_device
from megatron.common.errors import ConfigError
from megatron.common.optional import require
from megatron.evaluation.chat import ChatTemplate
from megatron.evaluation.faults import fault_of_harness, unreadable_files
from megatron.evaluation.results import plain
from megatron.neox_arguments.git import get_git_commit_hash
from megatron.neox_arguments.suggestions import several_nearest

DEFAULT_TASKS = ["lambada", "piqa", "hellaswag", "winogrande", "mathqa", "pubmedqa", "triviaqa"]


def require_harness() -> None:
    """Raises: MissingPackageError with the command that installs lm_eval."""
    require("lm_eval", "eval", "eval_tasks")


def check_tasks(neox_args) -> None:
    """Find a wrong key before anything is loaded or trained. Raises: ConfigError, MissingPackageError."""
    require_harness()
    if neox_args.eval_apply_chat_template:
        ChatTemplate(neox_args.tokenizer_type, neox_args.vocab_file)
    chosen_tasks(neox_args.eval_tasks, neox_args.eval_include_path)


def chosen_tasks(names: list[str] | None, include_path: str | list[str] | None) -> list[str]:
    """The registered names of tasks, groups and tags that names stand for, and of tasks that wildcards stand for.

    Raises: ConfigError with all that are unknown and what is like them.
    """
    manager = _manager_for(names, include_path)
    known = manager.all_tasks
    found: dict[str, None] = {}
    problems = []
    for name in names or DEFAULT_TASKS:
        # Groups match too, but their tasks would then be asked for twice.
        matches = [name] if name in known else [task for task in manager.all_subtasks if fnmatch(task, name)]
        found.update(dict.fromkeys(matches))
        if not matches:
            near = several_nearest(name, known)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else "tasks of your own: set eval_include_path"
            )
            problems.append(f"eval_tasks: lm_eval knows no task {name!r}; {hint}")
    if problems:
        raise ConfigError(problems + unreadable_files(_folders(include_path)))
    return list(found)


def _folders(include_path: str | list[str] | None) -> tuple[str, ...]:
    folders = (include_path,) if isinstance(include_path, str) else tuple(include_path or ())
    missing = [folder for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise ConfigError(f"eval_include_path={missing[0]} is no folder; name one that holds task YAML files")
    return tuple(str(Path(folder).resolve()) for folder in folders)


def _manager_for(names: list[str] | None, include_path: str | list[str] | None):
    """The index of all tasks, or of the user's own where these are all that is asked for."""
    folders = _folders(include_path)
    if folders and names:
        # Tasks, not groups: those may be made of the harness's.
        own = _manager(folders, include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    return _manager(folders)


@functools.cache
def _manager(folders: tuple[str, ...], include_defaults: bool = True):
    """Reading the harness's thousands of small files takes ten seconds and more."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders) or None, include_defaults=include_defaults)


def evaluate_tasks(
    adapter,
    names: list[str] | None,
    num_fewshot: int | None,
    bootstrap_iters: int,
    limit: float | None,
    description: dict[str, Any],
) -> dict[str, Any]:
    """Run the harness on an adapter; see EvalHarnessAdapter.run_eval.

    Args: description: what the config of the results begins with.
    Raises: ConfigError for unknown tasks, DataError for a task that is wrong or whose data cannot be had.
    """
    import datasets
    from lm_eval.evaluator import simple_evaluate

    datasets.disable_progress_bars()
    neox_args = adapter.neox_args
    limit = neox_args.eval_limit if limit is None else limit
    folders = neox_args.eval_include_path
    names = names or neox_args.eval_tasks
    tasks = chosen_tasks(names, folders)
    with _faults_told(tasks, folders), _own_random_numbers(), without_inventory():
        results = simple_evaluate(
            model=adapter,
            tasks=tasks,
            task_manager=_manager_for(names, folders),
            num_fewshot=neox_args.eval_num_fewshot if num_fewshot is None else num_fewshot,
            limit=limit,
            bootstrap_iters=bootstrap_iters,
            log_samples=neox_args.eval_log_samples,
            apply_chat_template=neox_args.eval_apply_chat_template,
            # Of a conversation, examples are turns.
            fewshot_as_multiturn=neox_args.eval_apply_chat_template,
        )
    for values in results["results"].values():
        values.pop("alias", None)
    results["config"] = {
        **results.get("config", {}),
        **description,
        "model_args": neox_args.all_config,
        "batch_size": adapter.batch_size,
        "device": str(adapter.model.device),
        "limit": limit,
        "bootstrap_iters": bootstrap_iters,
    }
    return plain(results)


@contextlib.contextmanager
def _faults_told(tasks: list[str], include_path: str | list[str] | None) -> Iterator[None]:
    """Raise what is wrong with the tasks as errors of the user."""
    try:
        yield
    except Exception as error:
        if "Duplicate task" in str(error):
            raise ConfigError(f"eval_tasks asks for a task twice, perhaps within a group: {error}") from error
        if (fault := fault_of_harness(error, tasks, _folders(include_path))) is not None:
            raise fault from error
        raise


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """The harness seeds everybody's generators; a training that goes on must not notice."""
    python, numpy = random.getstate(), np.random.get_state()
    own = current_device()
    with torch.random.fork_rng(devices=[own] if own.type != "cpu" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def without_inventory() -> Iterator[None]:
    """Keep the harness from describing the machine after every evaluation, for which it starts pip, git and others and
    needs seconds each time. Versions, which are had at once, stay in the results."""
    from lm_eval import evaluator

    def add_versions(results: dict[str, Any]) -> None:
        results |= {f"{name}_version": version(name) for name in ("lm_eval", "transformers")}

    kept = {"add_env_info": add_versions, "get_git_commit_hash": get_git_commit_hash}
    before = {name: getattr(evaluator, name) for name in kept}
    vars(evaluator).update(kept)
    try:
        yield
    finally:
        vars(evaluator).update(before)


def table(results: dict[str, Any]) -> str:
    """The harness's own table of results, and the one of its groups if there are any."""
    from lm_eval.utils import make_table

    parts = ["results", "groups"] if results.get("groups") else ["results"]
    return "\n".join(make_table(results, part) for part in parts)

"""What goes wrong within the harness and the files of tasks, in one line that names the task."""

import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from megatron.common.errors import DataError


def unreadable_files(folders: Iterable[str]) -> list[str]:
    """Of the task files in folders of the user, those that are no YAML. The harness passes over them in silence."""
    problems = []
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.yaml")):
        try:
            # Nodes alone: what tags such as !function stand for is the harness's business.
            yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            problems.append(f"eval_include_path: {path} cannot be read: {_words(error)}")
    return problems


def fault_of_harness(error: Exception, tasks: list[str], folders: Iterable[str]) -> DataError | None:
    """What to tell of an error that comes from the harness, as its traceback shows; None if the model that the harness
    has called has failed, which is no fault of a task.

    Args: tasks: all that are evaluated, named where the harness was not at work on one of them.
    """
    import datasets

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = {frame.f_globals.get("__name__", "") for frame in frames} - {"megatron.evaluation.harness"}
    if any(module.startswith("megatron.") for module in modules):
        return None
    name = _task_at_work(frames)
    subject = f"eval_tasks: {name or ', '.join(tasks)}"
    if isinstance(error, (OSError, datasets.exceptions.DatasetsError)):
        return DataError(f"{subject}: a data set cannot be read: {_words(error)}")
    if "confirm_run_unsafe_code" in str(error):
        return DataError(
            f"{subject}: one of these runs the code that the model writes, which is not done here; leave it out"
        )
    place = _place_in(error, [Path(folder).resolve() for folder in folders])
    return DataError(
        f"{subject} cannot be evaluated{place}: {type(error).__name__}: {_words(error)}; correct the task, or leave "
        "it out"
    )


def _task_at_work(frames: list[FrameType]) -> str | None:
    from lm_eval.api.task import Task

    for frame in reversed(frames):
        owner: Any = frame.f_locals.get("self")
        if isinstance(owner, Task):
            return getattr(getattr(owner, "config", None), "task", None)
    return None


def _place_in(error: Exception, folders: list[Path]) -> str:
    """The line of the user's own Python beside a task, if that is where it failed."""
    for step in reversed(traceback.extract_tb(error.__traceback__)):
        if any(folder in Path(step.filename).parents for folder in folders):
            return f" ({step.filename}, line {step.lineno})"
    return ""


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

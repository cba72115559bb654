"""What a process leaves in log_dir at its start: copies of its output, and the full configuration."""

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.common.console import warn
from megatron.common.errors import LaunchError
from megatron.common.files import atomic_write_text
from megatron.common.tee import Tee

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG, TRAINING = "neox_args.json", "train.py"


def tee_output(folder: Path) -> None:
    """Copy this process's output to HOST_stdout.txt and HOST_stderr.txt; every process of a machine but the first adds
    its rank to the names. Appends; called again it does nothing.

    Raises: LaunchError if the folder cannot be written.
    """
    if isinstance(sys.stdout, Tee):
        return
    name = socket.gethostname()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        name += f"_rank{os.environ.get('RANK', os.environ['LOCAL_RANK'])}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Tee(str(folder / f"{name}_stdout.txt"))
        Tee(str(folder / f"{name}_stderr.txt"), err=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def write_configuration(folder: Path, values: dict[str, Any]) -> None:
    """save_configuration, on rank 0 only.

    Raises: LaunchError if it cannot be written.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        save_configuration(folder, values)
    except OSError as error:
        raise _unwritable(folder, error) from None


def save_configuration(folder: Path, values: dict[str, Any]) -> None:
    """Write neox_args.json: every key, defaults included. That of a training stays when its model is evaluated.

    Raises: OSError if it cannot be written.
    """
    path, script = folder / CONFIG, Path(values.get("user_script") or TRAINING).name
    if script != TRAINING and path.exists():
        return
    atomic_write_text(path, json.dumps(values, indent=2, sort_keys=True, default=str))


def event_writer(folder: str) -> "SummaryWriter | None":
    """A writer of TensorBoard events; without the package None and a warning.

    Raises: LaunchError if the folder cannot be made.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warn(f"tensorboard_dir={folder!r}: no events are written: pip install tensorboard")
        return None
    _silence_event_thread()
    try:
        # Little is lost with a process that is killed.
        return SummaryWriter(log_dir=folder, flush_secs=10)
    except OSError as error:
        raise LaunchError(
            f"tensorboard_dir={folder!r} cannot be written: {error.strerror}; choose another folder"
        ) from None


def _silence_event_thread() -> None:
    """Keep the thread that writes events from showing the traceback of a failure: the writer's next call raises it
    again, and that is told in one line (megatron/logging/metrics.py)."""
    show = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            show(failure)

    threading.excepthook = hook


def _unwritable(folder: Path, error: OSError) -> LaunchError:
    return LaunchError(
        f"log_dir={str(folder)!r} cannot be written: {error.strerror}; make room, or choose another folder"
    )

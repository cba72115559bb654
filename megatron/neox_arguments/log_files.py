"""What a process leaves in log_dir at its start: copies of its output, and the full configuration."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from megatron.common.errors import LaunchError
from megatron.common.files import atomic_write_text
from megatron.common.tee import Tee


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
    """On rank 0 write neox_args.json: every key, defaults included.

    Raises: LaunchError if it cannot be written.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        atomic_write_text(
            folder / "neox_args.json", json.dumps(values, indent=2, sort_keys=True, default=str)
        )
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> LaunchError:
    return LaunchError(
        f"log_dir={str(folder)!r} cannot be written: {error.strerror}; make room, or choose another folder"
    )

"""Copies of a process's standard output and error in files."""

import os
import socket
import sys
from pathlib import Path

from megatron.common.errors import LaunchError
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
        raise LaunchError(f"log_dir={str(folder)!r} cannot be written: {error.strerror}") from None

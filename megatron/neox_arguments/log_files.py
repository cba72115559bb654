"""Copies of a process's standard output and error in files."""

import os
import socket
import sys
from pathlib import Path
from typing import TextIO

from megatron.common.errors import LaunchError


class Tee:
    """A text stream that also appends to a file; everything but writing is the stream's own."""

    def __init__(self, stream: TextIO, path: Path):
        self._stream = stream
        self._file = path.open("a", encoding="utf-8")

    def write(self, text: str) -> int:
        """Write to both."""
        self._file.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        """Flush both."""
        self._file.flush()
        self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def tee_output(folder: Path) -> None:
    """Copy this process's output to HOST_stdout.txt and HOST_stderr.txt (with the rank in the name beyond the first
    process of a machine). Appends; called again it does nothing.

    Raises: LaunchError if the folder cannot be written.
    """
    if isinstance(sys.stdout, Tee):
        return
    local_rank = os.environ.get("LOCAL_RANK", "0")
    name = socket.gethostname() + (f"_rank{os.environ.get('RANK', local_rank)}" if local_rank != "0" else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        out, err = Tee(sys.stdout, folder / f"{name}_stdout.txt"), Tee(sys.stderr, folder / f"{name}_stderr.txt")
    except OSError as error:
        raise LaunchError(f"log_dir={str(folder)!r} cannot be written: {error.strerror}") from None
    sys.stdout, sys.stderr = out, err

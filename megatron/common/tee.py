"""Copies of standard output and error in a file."""

import contextlib
import sys
from collections.abc import Callable


class Tee:
    """Writes what goes to standard output (or error) also to `file`, opened for appending.

    A file that cannot be written to any more, on a full disk, is given up with a warning; the program goes on.
    Everything else a stream can do is the terminal's, so libraries that ask for fileno, isatty or encoding get on.
    """

    def __init__(self, file: str, err: bool = False):
        self._file = open(file, "a", encoding="utf-8", buffering=1)
        self._copies = True
        self._err = err
        self._stream = sys.stderr if err else sys.stdout
        if err:
            sys.stderr = self
        else:
            sys.stdout = self

    def write(self, data: str) -> int:
        try:
            return self._stream.write(data)
        finally:  # The terminal may have gone, the file is there.
            self._attempt(lambda: self._file.write(data))

    def flush(self) -> None:
        self._attempt(self._file.flush)
        self._stream.flush()

    def close(self) -> None:
        """Give the stream back and close the file."""
        if self._err:
            sys.stderr = self._stream
        else:
            sys.stdout = self._stream
        self._attempt(self._file.close)

    def _attempt(self, action: Callable[[], object]) -> None:
        if not self._copies:
            return
        try:
            action()
        except OSError as error:
            self._copies = False
            with contextlib.suppress(OSError):
                self._file.close()  # fails as well, and drops what it still held
            name, reason = self._file.name, error.strerror
            self._stream.write(
                f"warning: {name} cannot be written ({reason}): nothing more is copied to it\n"
            )

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

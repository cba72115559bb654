"""Copies of standard output and error in a file."""

import sys


class Tee:
    """Writes what goes to standard output (or error) also to `file`, opened for appending.

    Everything else a stream can do is the terminal's, so libraries that ask for fileno, isatty or encoding get on.
    """

    def __init__(self, file: str, err: bool = False):
        self._file = open(file, "a", encoding="utf-8", buffering=1)
        self._err = err
        self._stream = sys.stderr if err else sys.stdout
        if err:
            sys.stderr = self
        else:
            sys.stdout = self

    def write(self, data: str) -> int:
        self._file.write(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._file.flush()
        self._stream.flush()

    def close(self) -> None:
        """Give the stream back and close the file."""
        if self._err:
            sys.stderr = self._stream
        else:
            sys.stdout = self._stream
        self._file.close()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

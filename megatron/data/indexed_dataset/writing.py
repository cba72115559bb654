"""What the builders of indexed data sets share: numbers spooled to disk, and files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron.common.errors import DataError
from megatron.common.files import atomic_path
from megatron.data.indexed_dataset.base import IndexedDatasetReader, code, data_file_path

COPY_BYTES = 1 << 24
CHUNK_ITEMS = 1 << 20
BUFFER_BYTES = 1 << 20


class Spool:
    """A growing list of numbers on disk, so that a builder's memory does not grow with its data.

    The file has no name: nothing is left behind however the program ends.
    """

    FLUSH_AT = 1 << 16

    def __init__(self, dtype, directory: Path):
        self.dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=directory)
        self._pending: list[int] = []
        self._written = 0

    def __len__(self) -> int:
        return self._written + len(self._pending)

    def append(self, value: int) -> None:
        self._pending.append(value)
        if len(self._pending) >= self.FLUSH_AT:
            self._flush()

    def extend(self, values: np.ndarray) -> None:
        self._flush()
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        self._written += len(values)

    def _flush(self) -> None:
        self._file.write(np.array(self._pending, dtype=self.dtype).tobytes())
        self._written += len(self._pending)
        self._pending = []

    def chunks(self) -> Iterator[np.ndarray]:
        """All numbers, a million at a time."""
        self._flush()
        self._file.seek(0)
        while block := self._file.read(CHUNK_ITEMS * self.dtype.itemsize):
            yield np.frombuffer(block, dtype=self.dtype)

    def close(self) -> None:
        self._file.close()


class IndexedDatasetWriter:
    """What the builders share: both files are written under temporary names; `finalize` puts them in place.

    The old index is removed before the new data takes its place and the new index comes last, so an interrupted run
    never leaves a pair of files that looks complete. `abort` (or leaving a `with` block by an error) removes the
    temporary file; so does the end of the program.

    Args of builders: out_file: path of the .bin file; dtype: element type, which every item must have.
    """

    def __init__(self, out_file, dtype):
        self.path = Path(out_file)
        self.dtype = np.dtype(dtype)
        self.dtype_code = code(dtype)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._spools: list[Spool] = []
        try:
            self._data = open(self._temporary, "wb", buffering=BUFFER_BYTES)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from None
        self.elements = 0

    def _spool(self, dtype) -> Spool:
        self._spools.append(Spool(dtype, self.path.parent))
        return self._spools[-1]

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace) -> None:
        if kind is not None:
            self.abort()

    def __del__(self):
        if hasattr(self, "_data"):
            self.abort()

    def abort(self) -> None:
        """Give the data set up; nothing of it stays. Without effect after `finalize`."""
        self._data.close()
        self._temporary.unlink(missing_ok=True)
        for spool in self._spools:
            spool.close()

    def _as_item(self, np_array) -> np.ndarray:
        array = np.asarray(np_array)
        assert array.dtype == self.dtype, f"items of {self.path} are {self.dtype}, not {array.dtype}"
        return array

    def _write(self, block: bytes) -> None:
        try:
            self._data.write(block)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from error

    def _append_data(self, other: IndexedDatasetReader) -> None:
        """Copy the elements of another data set behind those written."""
        if other.dtype != self.dtype:
            raise DataError(
                f"{other.path} holds {other.dtype} and cannot be merged into {self.path} of {self.dtype}"
            )
        with open(data_file_path(other.path), "rb") as source:
            while block := source.read(COPY_BYTES):
                self._write(block)
                self.elements += len(block) // self.dtype.itemsize

    def _put_in_place(self, index_file, write_index: Callable[[BinaryIO], None]) -> None:
        self._data.flush()
        os.fsync(self._data.fileno())
        with atomic_path(index_file) as temporary:
            with open(temporary, "wb", buffering=BUFFER_BYTES) as index:
                write_index(index)
            Path(index_file).unlink(missing_ok=True)
            os.replace(self._temporary, self.path)
        self.abort()

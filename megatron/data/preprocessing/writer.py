"""Token datasets written in one pass: constant memory, can be taken up again, appear complete or not at all."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from megatron.common.errors import DataError
from megatron.common.files import atomic_path, fsync_directory
from megatron.data.indexed_dataset import cached, code, data_file_path, index_file_path, mmap

INDEX_CHUNK = 1 << 20
BUFFER_BYTES = 1 << 20


class TokenWriter:
    """Writes PREFIX.bin and PREFIX.idx, one item and one document per text.

    Until `publish` the data stands in PREFIX.bin.part and PREFIX.sizes.part. `mark` tells how far they go: a later
    writer that is given such a state goes on from there.
    """

    def __init__(self, prefix: str, dtype: str, state: dict | None = None):
        self.prefix, self.dtype = prefix, np.dtype(dtype)
        self.data_part, self.sizes_part = Path(f"{prefix}.bin.part"), Path(f"{prefix}.sizes.part")
        self.items = state["items"] if state else 0
        self._open_length = state["open_length"] if state else 0
        self._data = self._start(self.data_part, state["bytes"] if state else 0)
        self._sizes = self._start(self.sizes_part, 4 * self.items)
        self.bytes = self._data.tell()

    @staticmethod
    def can_resume(prefix: str, state: dict) -> bool:
        """Whether the unfinished files hold at least what the state says."""
        wanted = {f"{prefix}.bin.part": state["bytes"], f"{prefix}.sizes.part": 4 * state["items"]}
        return all(
            Path(path).is_file() and Path(path).stat().st_size >= size for path, size in wanted.items()
        )

    def _start(self, path: Path, size: int) -> IO[bytes]:
        with self._writing():
            file = open(path, "ab", buffering=BUFFER_BYTES)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise DataError(
                    f"{path} is being written by another run: wait for it or take another prefix"
                ) from error
            except OSError:
                pass  # a file system without locks
            file.truncate(size)
            file.seek(0, os.SEEK_END)
            return file

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.prefix}.bin and .idx cannot be written ({error.strerror}); make room, or choose another "
                "--output-prefix"
            ) from error

    def append(self, flat: np.ndarray, lengths: np.ndarray, begins: bool = True, ends: bool = True) -> None:
        """Add items laid out one after the other; the first goes on with the open item unless `begins`.

        Args: flat: [sum of lengths] of the writer's dtype; lengths: [items]; ends: False leaves the last item open.
        """
        if not len(lengths):
            return
        assert flat.dtype == self.dtype, f"{flat.dtype} ids for a dataset of {self.dtype}"
        lengths = lengths.astype(np.int64)
        if not begins:
            lengths[0] += self._open_length
        open_length = 0 if ends else int(lengths[-1])
        finished = lengths if ends else lengths[:-1]
        if not begins and len(finished) and finished[0] == 0:
            finished = finished[1:]  # a large document that turned out to hold no token
        if len(finished) and finished.max() > mmap.LARGEST_ITEM:
            raise DataError(f"{self.prefix}: a document has more than {mmap.LARGEST_ITEM} tokens, split it")
        with self._writing():
            self._data.write(flat.data)
            self._sizes.write(finished.astype("<i4").data)
        self.bytes += flat.nbytes
        self.items += len(finished)
        self._open_length = open_length

    def mark(self) -> dict:
        """The position now, for `state` of a later writer; on disk after `sync`."""
        return {"bytes": self.bytes, "items": self.items, "open_length": self._open_length}

    def sync(self) -> None:
        """Bring everything written so far to the disk."""
        for file in (self._data, self._sizes):
            with self._writing():
                file.flush()
                os.fsync(file.fileno())

    def publish(self, impl: str) -> None:
        """Write the index ("mmap", or "cached" / "lazy") and give both files their names, the index last."""
        self.sync()
        self.close()
        data, index = Path(data_file_path(self.prefix)), Path(index_file_path(self.prefix))
        with self._writing(), atomic_path(index) as temporary:
            with open(temporary, "wb") as file:
                for part in _mmap_index(self) if impl == "mmap" else _cached_index(self):
                    file.write(part)
            index.unlink(missing_ok=True)  # an old index must never stand beside new data
            os.replace(self.data_part, data)
            fsync_directory(data.parent)
        self.sizes_part.unlink()

    def sizes(self) -> Iterator[np.ndarray]:
        """Item lengths (int32) in chunks."""
        with open(self.sizes_part, "rb") as file:
            while raw := file.read(4 * INDEX_CHUNK):
                yield np.frombuffer(raw, dtype="<i4")

    def close(self) -> None:
        """Let go of the files, which stay for a later writer."""
        for file in (self._data, self._sizes):
            with suppress(OSError):  # a full disk has been reported by then
                file.close()

    def discard(self) -> None:
        """Give up; nothing stays."""
        self.close()
        for path in (self.data_part, self.sizes_part):
            path.unlink(missing_ok=True)


def _mmap_index(writer: TokenWriter) -> Iterator[bytes]:
    yield mmap.HEADER.pack(mmap.MAGIC, mmap.VERSION, code(writer.dtype), writer.items, writer.items + 1)
    yield from (sizes.tobytes() for sizes in writer.sizes())
    yield from _starts(writer, writer.dtype.itemsize, with_end=False)
    yield from _counting(writer.items + 1)


def _cached_index(writer: TokenWriter) -> Iterator[bytes]:
    items, dtype = writer.items, writer.dtype
    yield cached.HEADER.pack(
        cached.MAGIC, cached.VERSION, code(dtype), dtype.itemsize, items, items, items + 1
    )
    yield from _counting(items + 1)  # every item has one dimension
    yield from _starts(writer, 1, with_end=True)
    yield from (sizes.astype("<i8").tobytes() for sizes in writer.sizes())
    yield from _counting(items + 1)


def _starts(writer: TokenWriter, unit: int, with_end: bool) -> Iterator[bytes]:
    total = 0
    for sizes in writer.sizes():
        ends = total + np.cumsum(sizes, dtype=np.int64) * unit
        yield (ends - sizes.astype(np.int64) * unit).astype("<i8").tobytes()
        total = int(ends[-1])
    if with_end:
        yield struct.pack("<q", total)


def _counting(count: int) -> Iterator[bytes]:
    for start in range(0, count, INDEX_CHUNK):
        yield np.arange(start, min(start + INDEX_CHUNK, count), dtype="<i8").tobytes()

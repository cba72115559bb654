"""Writing the files of a checkpoint: summed up on the way, durable, tried again where it fails."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch

from megatron.checkpointing.checksum import crc32
from megatron.common import activity

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
_SHARED = 1 << 20  # bytes from which it pays to sum up on another thread
_SYNC_EVERY = 1 << 25  # bytes
Result = TypeVar("Result")


def retried(action: Callable[[], Result]) -> Result:
    """Do `action`, again after a pause where it fails: what passes by itself, as on a network file system, takes a
    moment.

    Raises: OSError, RuntimeError of the last attempt.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except (OSError, RuntimeError):
            time.sleep(PAUSE_SECONDS * attempt)
    return action()


def write_tensors(state: object, path: str | Path) -> dict:
    """torch.save, durable.

    Returns: the file's record for the manifest, without reading it again.
    Raises: OSError, RuntimeError.
    """
    # The helpers end first: the number of a closed file may be another file's already.
    with open(path, "wb", buffering=_SHARED) as file, ThreadPoolExecutor(2) as helpers:
        summed = _SummedFile(file, helpers)
        torch.save(state, summed)
        if summed.failure is not None:
            raise summed.failure
        file.flush()
        os.fsync(file.fileno())
    return {"size": summed.size, "crc32": summed.checksum}


class _SummedFile:
    """What torch writes to: a file whose CRC-32 is computed while it is written, from front to back, and whose content
    goes to the disk all the while, so that little is left for the end.

    A failure of writing is kept, not raised: it would have to pass through torch's own writer, which loses it.
    """

    def __init__(self, file: BinaryIO, helpers: ThreadPoolExecutor):
        self.size = self.checksum = 0
        self.failure: OSError | None = None
        self._file, self._helpers = file, helpers
        self._synced, self._syncing = 0, helpers.submit(int)

    def write(self, data) -> int:
        piece = memoryview(data)
        if self.failure is None:
            try:
                self._add(piece)
            except OSError as error:
                self.failure = error
        return piece.nbytes

    def _add(self, piece: memoryview) -> None:
        if piece.nbytes < _SHARED:
            self._file.write(piece)
            self.checksum = crc32(piece, self.checksum)
        else:
            # Both let go of the interpreter. The piece is torch's: nobody may look at it after the return.
            checksum = self._helpers.submit(crc32, piece, self.checksum)
            try:
                self._file.write(piece)
            finally:
                self.checksum = checksum.result()
        self.size += piece.nbytes
        activity.pulse()
        if self.size - self._synced >= _SYNC_EVERY and self._syncing.done():
            # The system reports a failure to whoever syncs first, and to nobody else.
            self._syncing.result()
            self._synced, self._syncing = self.size, self._helpers.submit(_sync, self._file.fileno())

    def flush(self) -> None:
        """What torch does at the end: no failure of the helpers may be lost."""
        try:
            self._syncing.result()
        except OSError as error:
            self.failure = self.failure or error


def _sync(handle: int) -> int:
    os.fdatasync(handle)
    return 0

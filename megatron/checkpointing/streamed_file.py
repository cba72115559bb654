"""Writing a .pt file whose tensors are fetched one after the other, so that it may be larger than the memory.

The file is laid out without content first; then every tensor is written to its place.
"""

import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from megatron.checkpointing.safe_engine import load_file

Keys = tuple[Any, ...]


class Piece(NamedTuple):
    """Consecutive values of a flattened tensor: first and last (exclusive), and what fetches them."""

    start: int
    stop: int
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Streamed:
    """A tensor of a file to be written; what no piece covers is zero."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: list[Piece]


def whole_tensor(shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], torch.Tensor]) -> Streamed:
    """A tensor fetched at once."""
    return Streamed(shape, dtype, [Piece(0, math.prod(shape), read)])


def write_streamed(path: Path, content: dict, budget: int, rest: Callable[[], None]) -> None:
    """Write `content`, plain containers with Streamed tensors in them.

    Args: rest: called whenever `budget` bytes have been fetched, to give back what `read` functions keep.
    """
    file, fetched = BlankFile(path, content), 0
    for keys, leaf in _tensors(content):
        pieces = (
            leaf.pieces if isinstance(leaf, Streamed) else [Piece(0, leaf.numel(), lambda leaf=leaf: leaf)]
        )
        for piece in pieces:
            values = piece.read()
            file.write(keys, values, piece.start)
            # It may be a small part of what has been touched.
            fetched += values.untyped_storage().nbytes()
            del values
            if fetched >= budget:
                fetched = 0
                rest()


class BlankFile:
    """A .pt file of `content`, plain containers in which tensors and Streamed say no more than shape and dtype: all
    values are zero until they are written, in any order, and take no room."""

    def __init__(self, path: Path, content: dict):
        self.path = path
        # Tensors without memory.
        with FakeTensorMode():
            blank = _replaced(content, lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype))
        with skip_data(materialize_fake_tensors=True):
            torch.save(blank, path)
        places = {keys: (leaf.data_ptr(), leaf.dtype) for keys, leaf in _tensors(load_file(path, mmap=True))}
        # As they lie in the file they lie in memory.
        begin = min((address for address, _ in places.values() if address), default=0)
        shift = _first_offset(path) - begin if begin else 0
        self._places = {keys: (address + shift, dtype) for keys, (address, dtype) in places.items()}

    def write(self, keys: Keys, values: torch.Tensor, start: int = 0) -> None:
        """Write a tensor, or values of it from number `start` on; `keys` lead to it."""
        if values.numel() == 0:
            return
        offset, dtype = self._places[keys]
        plain = values.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8)
        waiting = memoryview(plain.numpy())
        with open(self.path, "rb+", buffering=0) as file:
            file.seek(offset + start * dtype.itemsize)
            while waiting:
                # The system takes at most 2 GB at once.
                waiting = waiting[file.write(waiting) :]


def _first_offset(path: Path) -> int:
    """Where the values of the first tensor begin."""
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size]
        first = min(record.header_offset for record in records)
    with open(path, "rb") as file:
        # The header of a record ends with its name and with padding, whose lengths it holds (zip, APPNOTE 4.3.7).
        file.seek(first + 26)
        lengths = file.read(4)
    return first + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _replaced(content, blank: Callable[[Any], torch.Tensor]):
    if isinstance(content, (Streamed, torch.Tensor)):
        return blank(content)
    if isinstance(content, dict):
        return {key: _replaced(value, blank) for key, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, blank) for value in content]
    return content


def _tensors(content, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(keys that lead there, tensor)."""
    if isinstance(content, (Streamed, torch.Tensor)):
        yield keys, content
    elif isinstance(content, (dict, list)):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _tensors(value, (*keys, key))

"""Writing a .pt file whose tensors are fetched one after the other, so that it may be larger than the memory."""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import set_default_mmap_options, skip_data

from megatron.checkpointing.safe_engine import load_file


@dataclass(frozen=True)
class Piece:
    """Values start..stop-1 of a flattened tensor; `read` gives them, in any shape and dtype."""

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
    return Streamed(shape, dtype, [Piece(0, torch.Size(shape).numel(), read)])


def write_streamed(path: Path, content: dict, budget: int, rest: Callable[[], None]) -> None:
    """Write `content`, plain containers with Streamed tensors in them.

    Args: budget: bytes after which mapped memory is given back; rest: called then, and from time to time, to give back
    what `read` functions keep.
    """
    with skip_data():
        # Memory of blank tensors is never touched; all others are written in the second pass as well.
        torch.save(_replaced(content, lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype)), path)
    waiting = list(_tensors(content))
    while waiting:
        with set_default_mmap_options(mmap.MAP_SHARED):
            mapped = load_file(path, mmap=True)
        written = 0
        while waiting and written < budget:
            keys, leaf = waiting.pop()
            place = mapped
            for key in keys:
                place = place[key]
            written += _fill(place, leaf, budget - written, keys, waiting)
        del mapped, place
        rest()


def _fill(place: torch.Tensor, leaf, budget: int, keys: tuple, waiting: list) -> int:
    """Write a tensor, or as many of its pieces as the budget allows; what is left over goes back to `waiting`.

    Returns: bytes written.
    """
    if isinstance(leaf, torch.Tensor):
        place.copy_(leaf)
        return leaf.nbytes
    flat, written = place.view(-1), 0
    for number, piece in enumerate(leaf.pieces):
        if written and written >= budget:
            waiting.append((keys, Streamed(leaf.shape, leaf.dtype, leaf.pieces[number:])))
            break
        flat[piece.start : piece.stop] = piece.read().reshape(-1)
        # What is read is mapped as well, and may be a small part of a large tensor.
        written += 2 * (piece.stop - piece.start) * place.element_size()
    return written


def _replaced(content, blank: Callable[[Streamed], torch.Tensor]):
    if isinstance(content, Streamed):
        return blank(content)
    if isinstance(content, dict):
        return {key: _replaced(value, blank) for key, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, blank) for value in content]
    return content


def _tensors(content, keys: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(keys that lead there, tensor)."""
    if isinstance(content, (Streamed, torch.Tensor)):
        yield keys, content
    elif isinstance(content, (dict, list)):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _tensors(value, (*keys, key))

"""Index maps on disk: built once by whichever process comes first, memory-mapped by all.

One entry is a folder, named by a digest of everything its content depends on, holding one .npy file per array and
maps.json, which repeats the key in the clear. It is written under a temporary name and renamed, so that what is visible
is complete. Entries live beside the data (`<prefix>_index_maps`) or, where that cannot be written, in the user's cache.
"""

import errno
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron.common.console import info
from megatron.common.errors import DataError
from megatron.common.files import atomic_path, remove
from megatron.data.caches import CACHE_VARIABLE, cache_root, file_lock

# Raise when maps of the same key would come out differently.
SCHEMA = 1
RECORD = "maps.json"
MAP_ABOVE_BYTES = (
    1 << 20
)  # smaller arrays are read: thousands of open maps would exhaust the file descriptors
ABANDONED_AFTER_SECONDS = 24 * 3600
_said: set[Path] = set()


@dataclass(frozen=True)
class StoredMaps:
    """An opened entry: `arrays` by name (read-only), and `facts` that its builder recorded.

    Pickles as its path, so that loader workers map the files themselves; maps in memory have no path.
    """

    directory: Path | None
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]

    def __reduce__(self):
        if self.directory is None:
            return StoredMaps, (None, self.arrays, self.facts)
        return _reopen, (self.directory,)


Built = tuple[dict[str, np.ndarray], dict[str, Any]]


def load_or_build(
    beside: Path, name: str, key: dict, build: Callable[[], Built], shared: bool = True
) -> StoredMaps:
    """Open the entry of a key, building it first if no complete one exists. Any number of processes may call this.

    Args: beside: folder beside the data; name: readable start of the entry's name; key: everything the content depends
    on, as JSON; build: makes (arrays, facts); shared: False when every machine has files of its own, so that a machine
    never waits for another one.
    Raises: DataError if the entry can be written nowhere, and what `build` raises.
    """
    key = {"schema": SCHEMA, **key}
    text = json.dumps(key, sort_keys=True)
    entry = f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    for place in _places(beside):
        stored = _load(place / entry, key)
        if stored is not None:
            return stored
    place = _writable_place(beside)
    try:
        lock = place / (".lock" if shared else f".lock-{socket.gethostname()}")
        with file_lock(lock, f"the index maps of {name}"):
            return _load(place / entry, key) or _build_entry(place, entry, key, build)
    except OSError as error:
        raise DataError(
            f"index maps cannot be written to {place}: {error.strerror or error}; make room there"
        ) from error


def _places(beside: Path) -> Iterator[Path]:
    yield beside
    digest = hashlib.sha256(str(beside.absolute()).encode()).hexdigest()[:8]
    yield cache_root() / "index_maps" / f"{beside.name}-{digest}"


def _writable_place(beside: Path) -> Path:
    for place in _places(beside):
        try:
            place.mkdir(parents=place != beside, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK | os.X_OK):
            if place != beside and place not in _said:
                _said.add(place)
                info(f"{beside.parent} cannot be written: index maps are kept in {place}")
            return place
    raise DataError(
        f"index maps can be written neither to {beside} nor to {cache_root()}: set {CACHE_VARIABLE} to a folder"
    )


def _build_entry(place: Path, entry: str, key: dict, build: Callable[[], Built]) -> StoredMaps:
    """Build and publish. On a file system without locks several processes may be here: the first to finish wins."""
    _sweep(place)
    arrays, facts = build()
    target = place / entry
    if target.exists() and _load(target, key) is None:
        remove(target)
    try:
        with atomic_path(target) as temporary:
            _write(temporary, key, arrays, facts)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    stored = _load(target, key)
    if stored is None:
        raise DataError(f"index maps in {target} cannot be read back: remove that folder and start again")
    return stored


def _write(folder: Path, key: dict, arrays: dict[str, np.ndarray], facts: dict) -> None:
    folder.mkdir()
    for name, array in arrays.items():
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    shapes = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    with open(folder / RECORD, "w", encoding="utf-8") as file:
        json.dump({"key": key, "arrays": shapes, "facts": facts}, file)
        file.flush()
        os.fsync(file.fileno())


def _load(folder: Path, key: dict | None) -> StoredMaps | None:
    """The entry in a folder, or None if it is absent, incomplete, damaged or of another key (None: any key)."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if key is not None and record["key"] != key:
            return None
        arrays = {}
        for name, (dtype, shape) in record["arrays"].items():
            path = folder / f"{name}.npy"
            mode = "r" if path.stat().st_size >= MAP_ABOVE_BYTES else None
            # A plain view: indexing a numpy.memmap costs several times as much.
            array = np.asarray(np.load(path, mmap_mode=mode, allow_pickle=False))
            if str(array.dtype) != dtype or list(array.shape) != shape:
                return None
            arrays[name] = array
        return StoredMaps(folder, arrays, record["facts"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _reopen(folder: Path) -> StoredMaps:
    stored = _load(folder, None)
    if stored is None:
        raise DataError(f"index maps in {folder} cannot be read any more")
    return stored


def _sweep(place: Path) -> None:
    """Remove what builders that were killed left behind."""
    for left in place.glob(".*.tmp"):
        try:
            if time.time() - left.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                remove(left)
        except OSError:
            continue

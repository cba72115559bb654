"""The manifest: what a complete checkpoint consists of, so that a torn or damaged one is never believed."""

import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from megatron.checkpointing import checksum
from megatron.checkpointing.names import iteration_of_tag
from megatron.common.files import atomic_write_text

MANIFEST = "manifest.json"
VERSION = 2  # 1 had no sum of its own
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
_OUR_FILES = ("neox_args.json", "rng_rank_*.pt")  # which nobody else writes
_READERS = 8


def file_record(path: Path) -> dict:
    """Size in bytes and CRC-32 of a file's content."""
    size = path.stat().st_size
    with _readers() as readers:
        return {"size": size, "crc32": checksum.of_file(path, size, readers)()}


def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))


def content_files(directory: Path) -> list[str]:
    """Relative names of all files of a checkpoint but the manifest, sorted."""
    return sorted(
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST
    )


def write_manifest(directory: Path, files: dict[str, dict], description: dict) -> None:
    """Write the manifest; it must be the last file of the checkpoint."""
    content = {**description, "version": VERSION, "files": files}
    content["crc32"] = _sum(content)
    atomic_write_text(directory / MANIFEST, json.dumps(content, indent=1, sort_keys=True))


def _sum(content: dict) -> int:
    """CRC-32 of a manifest but for the sum in it."""
    rest = {key: value for key, value in content.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def read_manifest(directory: Path) -> dict | None:
    """The manifest, None if there is none; of a damaged one nothing is believed, which `problems` reports."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return {}
    return content if isinstance(content, dict) and _is_whole(content) else {}


def _is_whole(content: dict) -> bool:
    if content.get("version") == 1 and "crc32" not in content:
        return True
    return content.get("crc32") == _sum(content)


def is_foreign(directory: str | Path) -> bool:
    """Whether another program wrote a checkpoint, GPT-NeoX or a converter: nobody else leaves the manifest out."""
    return not Path(directory, MANIFEST).is_file() and not _is_ours(Path(directory))


def _is_ours(directory: Path) -> bool:
    """Whether a checkpoint without a manifest was written by this program, by files that no other one writes."""
    return any(any(directory.glob(pattern)) for pattern in _OUR_FILES)


def completed_at(directory: Path) -> float:
    """When a checkpoint was completed, in seconds since the epoch; 0 if its manifest does not say."""
    created = (read_manifest(directory) or {}).get("created", "")
    try:
        return datetime.strptime(created, TIME_FORMAT).timestamp()
    except (TypeError, ValueError):
        return 0.0


def problem(directory: Path, share: int = 0, shares: int = 1) -> str | None:
    """Why a checkpoint cannot be believed, in words; None if it is complete and undamaged, or of another program, which
    writes no manifest, so that nothing can be verified.

    Args: share, shares: look only at one of so many shares of the files.
    """
    return next(problems(directory, share, shares), None)


def problems(directory: Path, share: int = 0, shares: int = 1) -> Iterator[str]:
    """Everything that is wrong with a checkpoint; sizes are compared before anything is read."""
    manifest = read_manifest(directory)
    if manifest is None:
        if not is_foreign(directory):
            yield f"{MANIFEST} is missing"
    elif (useless := _useless(manifest, directory)) is not None:
        yield useless
    else:
        names = _share_of(manifest["files"], share, shares)
        yield from _damages(directory, {name: manifest["files"][name] for name in names})


def _useless(manifest: dict, directory: Path) -> str | None:
    """Why a manifest says nothing about the files beside it; None if it does."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(record, dict) for record in files.values()):
        return f"{MANIFEST} is damaged"
    if manifest.get("version", VERSION) > VERSION:
        return (
            f"a newer version of this program wrote it (version {manifest['version']} of {MANIFEST}, known up to "
            f"{VERSION}): update the program"
        )
    iteration = iteration_of_tag(directory.name)
    if iteration is not None and manifest.get("iteration", iteration) != iteration:
        return f"{MANIFEST} is of iteration {manifest['iteration']}"
    return None


def _damages(directory: Path, files: dict[str, dict]) -> Iterator[str]:
    """What is wrong with files of which there are records."""
    believable = []
    for name, record in files.items():
        path = directory / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != record.get("size"):
            yield f"{name} has {path.stat().st_size} bytes instead of {record.get('size')}"
        else:
            believable.append(name)
    readers = _readers()
    try:
        sums = [checksum.of_file(directory / name, files[name]["size"], readers) for name in believable]
        for name, total in zip(believable, sums, strict=True):
            try:
                damaged = total() != files[name].get("crc32")
            except OSError as error:
                yield f"{name} cannot be read ({error.strerror})"
                continue
            if damaged:
                yield f"{name} is damaged (its checksum differs)"
    finally:
        readers.shutdown(cancel_futures=True)


def _share_of(files: dict[str, dict], share: int, shares: int) -> list[str]:
    """Names for one of so many readers, none of whom gets all of the large files."""
    if shares == 1:
        return list(files)
    largest_first = sorted(files, key=lambda name: (-int(files[name].get("size", 0)), name))
    return sorted(largest_first[share::shares])

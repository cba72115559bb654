"""Files that appear whole or not at all."""

import os
import resource
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron.common.errors import NeoXError

# In the messages of torch.save, which does not say what the system has said.
_OF_TORCHS_WRITER = ("iostream", "inline_container", "PytorchStreamWriter")


def fsync_directory(path: str | Path) -> None:
    """Make renames inside the directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: str | Path) -> None:
    """Make a file's content durable."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def make_folder(path: str | Path, asked_by: str) -> Path:
    """Make a folder and those above it.

    Raises: NeoXError with the option or key that asked for it, where that cannot be.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NeoXError(
            f"{asked_by}: cannot make the folder {path} ({error.strerror}); choose another place"
        ) from None
    return path


def check_writable(folder: str | Path, asked_by: str) -> None:
    """Make a folder, and find out now whether files can be written into it.

    Raises: NeoXError with the option or key that asked for it, where that cannot be.
    """
    probe = make_folder(folder, asked_by) / f".probe_{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise NeoXError(
            f"{asked_by}: cannot write into the folder {folder} ({error.strerror}); choose another place"
        ) from None


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """While `place`, or what lies in it, is written: faults of the file system become one line that names it.

    Raises: NeoXError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            if error.strerror is None:
                raise
            place, reason = error.filename or place, error.strerror
        elif not any(word in reason for word in _OF_TORCHS_WRITER):
            raise
        reason = reason.splitlines()[0]
        raise NeoXError(
            f"{place} cannot be written ({reason}); free some space, or choose another place"
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (file or folder) that takes its place on success and vanishes on error.

    The sibling's name is unique to the call, so concurrent writers of one path never touch each other's bytes.
    A folder can only be put in place if `path` does not exist or is an empty folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if temporary.is_file():
            fsync_file(temporary)
        os.replace(temporary, path)
        fsync_directory(path.parent)
    finally:
        remove(temporary)


def remove(path: str | Path) -> None:
    """Delete a file or a folder if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Replace a text file atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files towards `count`, as far as the system's administrator lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

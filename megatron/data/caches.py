"""Where results that can be made again are kept, and the lock that keeps processes from making them twice."""

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from megatron.common.console import info

CACHE_VARIABLE = "NEOX_CACHE_PATH"
POLL_SECONDS = 0.05
SAY_WAITING_AFTER_SECONDS = 10.0
# What flock answers on file systems mounted without locks (some Lustre and NFS set-ups).
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def cache_root() -> Path:
    """The user's cache directory: $NEOX_CACHE_PATH, else $XDG_CACHE_HOME/gpt-neox, else ~/.cache/gpt-neox.

    Where none of them can be written, a private directory among the temporary files.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(OSError, RuntimeError):
        root = (Path(base) if base else Path.home() / ".cache") / "gpt-neox"
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK | os.X_OK):
            return root
    root = Path(tempfile.gettempdir()) / f"gpt-neox-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    # Compiled code is loaded from here: a directory that somebody else put there is not ours to trust.
    if root.stat().st_uid != os.getuid() or root.is_symlink():
        root = Path(tempfile.mkdtemp(prefix="gpt-neox-"))
    return root


@contextlib.contextmanager
def file_lock(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock, released by the kernel however the holder ends.

    Args: path: the lock file, made if absent and left in place; what: what the others are building, for the message
    of a process that waits long. On a file system without locks nothing is held: callers must stay right when several
    of them build at once, the lock only saves them the double work.
    Raises: OSError if the lock file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(handle, what)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, what: str) -> None:
    start, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if not said and time.monotonic() - start > SAY_WAITING_AFTER_SECONDS:
            info(f"waiting for another process to build {what}")
            said = True
        time.sleep(POLL_SECONDS)

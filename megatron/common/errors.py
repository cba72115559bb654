"""Errors that speak the user's words, and the one place where an entry script turns them into an exit code.

A NeoXError is a user's mistake or a fault of the outside world: its message is one line saying what is wrong, where,
and what to do, and it is shown without a traceback. Anything else is a defect of the program and keeps its traceback.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable

from megatron.common import lifeline

INTERRUPTED = 130
# EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again and it goes on.
COME_AGAIN = 75
LINGER_SECONDS = 10.0

# Faults of the outside world that any reading or writing may meet, and what to do about them.
_FULL = "free some space, or choose another place"
_FORBIDDEN = "change the permissions, or choose another place"
_MISPLACED = "correct the path"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOTDIR: _MISPLACED,
    errno.EISDIR: _MISPLACED,
    errno.ENAMETOOLONG: _MISPLACED,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network file system",
}


class NeoXError(Exception):
    """Base of all errors that are shown to the user as one line."""


class ConfigError(NeoXError, ValueError):
    """One or several problems of a configuration, reported together."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(self._message())

    def _message(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        listed = "\n".join(f"  - {problem}" for problem in self.problems)
        return f"{len(self.problems)} problems in the configuration:\n{listed}"


class DataError(NeoXError):
    """Training data, index maps or input text that is missing, damaged or of a foreign kind."""


class TokenizerError(NeoXError):
    """A tokenizer file that is missing, broken or lacks a token the run needs."""


class CheckpointError(NeoXError):
    """A checkpoint that is missing, torn, of another model, or a place that cannot be written."""


class LaunchError(NeoXError):
    """Something that keeps the job from starting: hosts, ports, devices, process counts."""


class MissingPackageError(NeoXError, ImportError):
    """An optional package is needed by the configuration and not installed."""


def run_main(main: Callable, *args) -> None:
    """Run an entry script's `main(*args)` and exit: 0, the code it returns, or 1 after a one-line error.

    Started by a launcher (megatron.launcher), a failing worker tells its error over its lifeline, so that each distinct
    error is shown once however many ranks it struck, and waits to be ended; otherwise it prints the error itself.

    SIGUSR1 is a scheduler's announcement that the time is over. A script that has nothing to save leaves at once with
    COME_AGAIN; training, while it lasts, has a handler of its own (megatron/engine/stop.py).
    """
    # First, since a launcher repeats its announcements to those who come.
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _come_again)
    lifeline.start()
    # A terminal that knows fewer characters shows the others as their numbers.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main(*args)
    except KeyboardInterrupt:
        lifeline.goodbye(INTERRUPTED)
        _leave(INTERRUPTED)
    except Exception as error:
        if _report(error):
            _linger()
        _leave(1)
    else:
        status = status if isinstance(status, int) else 0
        lifeline.goodbye(status)
        _flush()
        sys.exit(status)


def _come_again(number: int, frame: object) -> None:
    lifeline.goodbye(COME_AGAIN)
    os._exit(COME_AGAIN)


def _report(error: Exception) -> bool:
    """Returns: whether a launcher was told."""
    message, trace = _plain_message(error), None
    if message is None:
        message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    # What nobody has foreseen may not come again, and a file system may recover.
    mistake = trace is None and getattr(error, "errno", None) not in (errno.EIO, errno.ESTALE)
    if lifeline.report(message, trace, mistake):
        return True
    where = f"rank {os.environ.get('RANK', '0')}: " if _job_size() > 1 else ""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{trace or ''}error: {where}{message}\n")
    return False


def _plain_message(error: Exception) -> str | None:
    """What to say about a user's mistake or a fault of the outside world; None for a defect of the program."""
    if isinstance(error, NeoXError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.errno in _ADVICE:
        return f"{error.filename}: {error.strerror}; {_ADVICE[error.errno]}"
    text = str(error)
    # torch's own class for devices; its CPU allocator has none.
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in text:
        return (
            f"out of memory ({text.splitlines()[0][:300]}): lower train_micro_batch_size_per_gpu, set "
            "checkpoint_activations, or spread the model over more devices"
        )
    return None


def _linger() -> None:
    """Keep this rank's connections open until the launcher ends the job: ranks that lose a peer fail as well, and torch
    says so at length."""
    signal.signal(signal.SIGTERM, lambda number, frame: _leave(1))
    _flush()
    time.sleep(LINGER_SECONDS)


def _leave(status: int) -> None:
    """Exit at once: a failed rank must not wait in the clean-up of a process group whose peers may be gone."""
    _flush()
    if _job_size() > 1:
        os._exit(status)
    sys.exit(status)


def _flush() -> None:
    """Empty the output streams. What cannot be written is dropped, or Python would complain of it at its very end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _job_size() -> int:
    size = os.environ.get("WORLD_SIZE", "1")
    # What is not a number is what the message is about.
    return int(size) if size.isdecimal() else 1

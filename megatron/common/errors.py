"""Errors that speak the user's words, and the one place where an entry script turns them into an exit code.

A NeoXError is a user's mistake or a fault of the outside world: its message is one line saying what is wrong, where,
and what to do, and it is shown without a traceback. Anything else is a defect of the program and keeps its traceback.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

ERROR_DIR_VARIABLE = "NEOX_ERROR_DIR"
INTERRUPTED = 130
LINGER_SECONDS = 10.0


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

    Started by the local launcher (NEOX_ERROR_DIR set), a failing worker leaves its error in a file, so that the
    launcher can show each distinct error once however many ranks it struck, and waits to be ended; otherwise it prints
    the error itself.
    """
    try:
        status = main(*args)
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
    except Exception as error:
        if _report(error):
            _linger()
        _leave(1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _report(error: Exception) -> bool:
    """Returns: whether a launcher was told."""
    expected = isinstance(error, NeoXError)
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    trace = None if expected else traceback.format_exc()
    rank = os.environ.get("RANK", "0")
    directory = os.environ.get(ERROR_DIR_VARIABLE)
    if directory and Path(directory).is_dir():
        record = {"rank": int(rank), "message": message, "traceback": trace}
        unfinished = Path(directory, f"rank_{rank}.tmp")
        unfinished.write_text(json.dumps(record), encoding="utf-8")
        unfinished.rename(unfinished.with_suffix(".json"))
        return True
    where = f" (rank {rank})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    sys.stderr.write(f"{trace or ''}error{where}: {message}\n")
    return False


def _linger() -> None:
    """Keep this rank's connections open until the launcher ends the job: ranks that lose a peer fail as well, and torch
    says so at length."""
    signal.signal(signal.SIGTERM, lambda number, frame: _leave(1))
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(LINGER_SECONDS)


def _leave(status: int) -> None:
    """Exit at once: a failed rank must not wait in the clean-up of a process group whose peers may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(status)
    sys.exit(status)

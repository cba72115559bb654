"""Where the threads of this process are, as text."""

import os
import sys
import threading
import traceback
from types import FrameType

_DEEPEST = 30  # frames shown of a thread, the innermost ones
# Threads whose innermost frame lies here have nothing to do.
_IDLE = ("threading.py", "queue.py", "selectors.py", os.path.join("multiprocessing", "connection.py"))
_IMPORTER = "<frozen importlib"
_COMMUNICATION = (os.path.join("torch", "distributed") + os.sep, os.path.join("deepspeed", "comm") + os.sep)


def all_stacks() -> str:
    """The stack of the main thread, innermost call last, and those of other threads that do something."""
    frames = sys._current_frames()
    parts = [_formatted(frames.pop(_main()))]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in frames.items():
        if ident != threading.get_ident() and not frame.f_code.co_filename.endswith(_IDLE):
            parts.append(f"  in the thread {names.get(ident, ident)}:\n{_formatted(frame)}")
    return "".join(parts)


def waits_in() -> str | None:
    """The call in which the main thread waits for other ranks, None if it does something else."""
    stack = traceback.extract_stack(sys._current_frames()[_main()])
    inside = []
    for frame in reversed(stack):
        if not any(folder in frame.filename for folder in _COMMUNICATION):
            break
        inside.append(frame.name)
    if inside:
        return next((name for name in inside if not name.startswith(("_", "wrapper"))), inside[0])
    # `work.wait()` of an operation that runs beside the program stands in the caller's own line.
    return "wait" if ".wait(" in (stack[-1].line or "") else None


def _main() -> int:
    ident = threading.main_thread().ident
    assert ident is not None, "the main thread has been started"
    return ident


def _formatted(frame: FrameType) -> str:
    frames = [each for each in traceback.extract_stack(frame) if not each.filename.startswith(_IMPORTER)]
    return "".join(traceback.format_list(frames[-_DEEPEST:]))

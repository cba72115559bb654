"""What is profiled, and where it goes."""

from collections.abc import Iterator
from typing import Any

KEYS = (
    "profile",
    "profile_step_start",
    "profile_step_stop",
    "tensorboard_dir",
    "log_dir",
    "memory_profiling",
    "memory_profiling_path",
)


def problems(args: Any) -> Iterator[str]:
    """Complaints about a window that is none, and about results that have no place to go."""
    first, last = args.profile_step_start, args.profile_step_stop
    if first < 1:
        yield f"profile_step_start={first} must be above 0: iterations are counted from 1"
    if last < first:
        yield f"profile_step_stop={last} must not lie before profile_step_start={first}"
    if args.profile and not trace_folder(args):
        yield "profile needs tensorboard_dir or log_dir: the traces are written there"
    if args.memory_profiling and not snapshot_folder(args):
        yield "memory_profiling needs memory_profiling_path: the snapshots are written there, or where traces are"


def trace_folder(args: Any) -> str | None:
    """Where traces are written."""
    return args.tensorboard_dir or args.log_dir


def snapshot_folder(args: Any) -> str | None:
    """Where snapshots of the allocator are written."""
    return args.memory_profiling_path or trace_folder(args)

"""What some iterations do in detail: torch's profiler, ranges for nsys, the history of CUDA's allocator."""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from megatron.common import device
from megatron.common.console import info, warn
from megatron.common.errors import LaunchError
from megatron.neox_arguments.profiling import snapshot_folder, trace_folder

# What DeepSpeed calls the parts of an iteration -> their ranges; a pipeline's other instructions keep their names.
_METHODS = {"forward": "forward", "backward": "backward", "step": "optimizer"}
_INSTRUCTIONS = {"ForwardPass": "forward", "BackwardPass": "backward", "OptimizerStep": "optimizer"}


class Profiler:
    """Records from iteration `first` to iteration `last` of the training loop that it is around.

        with Profiler.from_config(neox_args, engine) as profiler:
            while ...:
                with profiler.iteration(number):
                    ...

    The records are written also when the loop ends before `last`, by an error too. A loop that begins after `first`
    records what is left.
    """

    def __init__(self, engine, first: int, last: int, recorders: list):
        self._engine, self._first, self._last = engine, first, last
        self._recorders = recorders
        self._ranges: contextlib.ExitStack | None = None
        self._unused = bool(recorders)

    @classmethod
    def from_config(cls, neox_args, engine) -> "Profiler":
        """Raises: LaunchError if a folder cannot be made."""
        recorders: list[Trace | AllocatorHistory] = []
        if neox_args.profile:
            key = "tensorboard_dir" if neox_args.tensorboard_dir else "log_dir"
            recorders.append(Trace(_made(key, trace_folder(neox_args))))
        if neox_args.memory_profiling and device.has_accelerator():
            folder = _made("memory_profiling_path", snapshot_folder(neox_args))
            recorders.append(AllocatorHistory(folder))
        elif neox_args.memory_profiling:
            warn("memory_profiling does nothing on a CPU: it records what CUDA's allocator does")
        return cls(engine, neox_args.profile_step_start, neox_args.profile_step_stop, recorders)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self._stop()
        if self._unused and kind is None:
            warn(f"nothing was profiled: no iteration from {self._first} to {self._last} was trained")

    @contextlib.contextmanager
    def iteration(self, number: int) -> Iterator[None]:
        """Around the training step of an iteration, counted from 1."""
        if self._recorders and self._ranges is None and self._first <= number <= self._last:
            self._start(number)
        if self._ranges is None:
            yield
            return
        # The name by which TensorBoard's plugin tells iterations apart.
        with _range(f"ProfilerStep#{number}"):
            yield
        if number == self._last:
            self._stop()

    def _start(self, number: int) -> None:
        self._unused = False
        for recorder in list(self._recorders):
            self._guarded(recorder, lambda recorder=recorder: recorder.start(number))
        self._ranges = contextlib.ExitStack()
        self._ranges.enter_context(_ranges(self._engine))

    def _stop(self) -> None:
        if self._ranges is None:
            return
        self._ranges.close()
        self._ranges = None
        for recorder in list(self._recorders):
            self._guarded(recorder, recorder.stop)

    # A profiler's fault, whatever it is, must not end the run.

    def _guarded(self, recorder, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            warn(f"{type(recorder).__name__} failed and is switched off: {error}")
            self._recorders.remove(recorder)


class Trace:
    """Operations and kernels on a time line: rank{r}.{first iteration}.pt.trace.json, for TensorBoard and Perfetto.

    Under nsys the same iterations are what `--capture-range=cudaProfilerApi` captures.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def start(self, number: int) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.has_accelerator():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._path = self._folder / f"rank{torch.distributed.get_rank()}.{number}.pt.trace.json"
        self._profile = torch.profiler.profile(activities=activities, record_shapes=True)
        device.synchronize()
        device.start_capture()
        self._profile.start()

    def stop(self) -> None:
        device.synchronize()
        self._profile.stop()
        device.stop_capture()
        self._profile.export_chrome_trace(str(self._path))
        # Where it cannot write it raises nothing and may leave a part, under a name that depends on torch's version.
        if not _is_closed_json(self._path):
            for part in (self._path, self._path.with_name(self._path.name + ".tmp")):
                part.unlink(missing_ok=True)
            raise OSError(f"{self._path} cannot be written")
        info(f"profile: {self._path}")


class AllocatorHistory:
    """What CUDA's allocator did, with the stacks that asked for it: mem_snapshot_rank{r}.pickle, for
    https://pytorch.org/memory_viz."""

    def __init__(self, folder: Path):
        self._path = folder / f"mem_snapshot_rank{torch.distributed.get_rank()}.pickle"

    def start(self, number: int) -> None:
        device.record_allocations(True)

    def stop(self) -> None:
        try:
            device.save_allocations(self._path)
        finally:
            device.record_allocations(False)
        info(f"memory profile: {self._path}")


def save_snapshot(neox_args) -> None:
    """Write what is known of the allocator of this process to mem_snapshot.pickle, at once; nothing on a CPU.

    Raises: LaunchError if the folder cannot be made.
    """
    if device.has_accelerator():
        folder = _made("memory_profiling_path", snapshot_folder(neox_args) or ".")
        device.save_allocations(folder / "mem_snapshot.pickle")


def _made(key: str, folder: str) -> Path:
    """The folder that a key names, made if it is not there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"{key}={folder!r} cannot be written: {error.strerror}; choose another folder"
        ) from None
    return Path(folder)


def _is_closed_json(path: Path) -> bool:
    if not path.exists():
        return False
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip().endswith(b"}")


@contextlib.contextmanager
def _range(name: str) -> Iterator[None]:
    with torch.profiler.record_function(name), device.annotation(name):
        yield


@contextlib.contextmanager
def _ranges(engine) -> Iterator[None]:
    """Give the parts of an iteration their ranges. The engine's functions are replaced meanwhile, so that a loop that
    is not profiled pays nothing."""
    replaced: dict[str, Any] = {}
    if hasattr(engine, "_INSTRUCTION_MAP"):
        replaced["_INSTRUCTION_MAP"] = {
            instruction: _ranged(function, _INSTRUCTIONS.get(instruction.__name__, instruction.__name__))
            for instruction, function in engine._INSTRUCTION_MAP.items()
        }
    else:
        replaced |= {method: _ranged(getattr(engine, method), name) for method, name in _METHODS.items()}
    before = {name: vars(engine)[name] for name in replaced if name in vars(engine)}
    vars(engine).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(engine)[name]
        vars(engine).update(before)


def _ranged(function: Callable, name: str) -> Callable:
    @wraps(function)
    def within(*args, **kwargs):
        with _range(name):
            return function(*args, **kwargs)

    return within

"""The device door: the only module that knows which accelerator the program runs on.

torch is imported on the first use of a function that needs it, so that the launcher can ask for the number of devices
of a CPU machine without paying for it.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import socket
import sys
from collections.abc import Callable
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.common.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    import torch


def accelerator_count() -> int:
    """Number of local accelerators this process may use; 0 on a CPU machine."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    # Asked many times a step, of a process that works on one. A fork of it cannot, and looks anew.
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return sys.modules["torch"].cuda.device_count()
    if not (glob("/dev/nvidia[0-9]*") or glob("/dev/kfd")):
        return 0
    if "torch" not in sys.modules and (count := _count_by_driver()) is not None:
        return count
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _count_by_driver() -> int | None:
    """What torch would count, asked of NVIDIA's management library so that a launcher need not load torch; None where
    only torch can tell."""
    if not _torch_is_built_for_cuda():
        return None
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return None
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count.value
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not all(name.isdigit() and int(name) < count.value for name in names):
        return None
    return len(names)


def _torch_is_built_for_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b[^=]*=\s*['\"]", version, re.MULTILINE) is not None


def has_accelerator() -> bool:
    return accelerator_count() > 0


def current_device() -> "torch.device":
    """The device of this rank: `cuda:LOCAL_RANK` or `cpu`."""
    import torch

    if not has_accelerator():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())


def check_own_device() -> None:
    """For NCCL, which does not let processes share a device.

    A process that sees a single one has been given that one, whatever its number among those of its host.

    Raises: LaunchError if the host has fewer devices than processes.
    """
    local_rank, count = int(os.environ.get("LOCAL_RANK") or 0), accelerator_count()
    if local_rank >= count > 1:
        raise LaunchError(
            f"host {socket.gethostname()!r} has {count} devices, and this is its process number {local_rank + 1}: "
            "correct the slots of the hostfile, or num_gpus"
        )


def set_device() -> "torch.device":
    """Make this rank's device the default one and return it."""
    import torch

    device = current_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def backend(requested: str = "nccl") -> str:
    """The torch.distributed backend to use: nccl needs GPUs, a CPU machine always takes gloo.

    Raises: ConfigError for one that this torch does not have.
    """
    from torch.distributed import is_backend_available

    found = requested if has_accelerator() or requested != "nccl" else "gloo"
    # Several may be named, each behind the kind of device that it serves: cpu:gloo,cuda:nccl.
    for name in found.split(","):
        if not is_backend_available(name.split(":")[-1]):
            known = [one for one in ("nccl", "gloo", "mpi", "ucc", "xccl") if is_backend_available(one)]
            raise ConfigError(
                f"distributed_backend={requested!r} is not among those that this torch has: {', '.join(known)}"
            )
    return found


def compute_capability() -> tuple[int, int]:
    """What NVIDIA calls the generation of this rank's device: (8, 0) for an A100, (9, 0) for an H100; (0, 0) on CPU."""
    if not has_accelerator():
        return 0, 0
    import torch

    return torch.cuda.get_device_capability()


def synchronize() -> None:
    """Wait for the device's queued work; nothing to wait for on CPU."""
    if has_accelerator():
        import torch

        torch.cuda.synchronize()


def manual_seed(seed: int) -> None:
    """Seed torch's CPU generator and this rank's device generator."""
    import torch

    torch.random.default_generator.manual_seed(seed)
    if has_accelerator():
        torch.cuda.manual_seed(seed)


def get_rng_state() -> "torch.Tensor":
    """State of the generator that draws on this rank's device, uint8."""
    import torch

    return torch.cuda.get_rng_state() if has_accelerator() else torch.get_rng_state()


def set_rng_state(state: "torch.Tensor") -> None:
    """Counterpart of get_rng_state."""
    import torch

    if has_accelerator():
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)


def memory_stats() -> dict[str, float]:
    """Device memory of this process in bytes: allocated, max allocated, reserved, max reserved.

    On CPU the resident set size stands for all but the maxima, which are the peak resident set size.
    """
    if has_accelerator():
        import torch

        return {
            "allocated": torch.cuda.memory_allocated(),
            "max allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "max reserved": torch.cuda.max_memory_reserved(),
        }
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    # The kernel brings the peak up to date now and then only.
    peak = max(resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"allocated": resident, "max allocated": peak, "reserved": resident, "max reserved": peak}


def event_maker() -> Callable[[], Any] | None:
    """What makes timing events of the device, or None on CPU where the clock is enough."""
    if not has_accelerator():
        return None
    import torch

    return partial(torch.cuda.Event, enable_timing=True)


def annotation(name: str) -> contextlib.AbstractContextManager:
    """A named range in what NVIDIA's profilers show (NVTX); nothing on CPU."""
    if not has_accelerator():
        return contextlib.nullcontext()
    import torch

    return torch.cuda.nvtx.range(name)


def start_capture() -> None:
    """Tell a profiler around this process to begin (cudaProfilerStart); nothing on CPU."""
    if has_accelerator():
        import torch

        torch.cuda.profiler.start()


def stop_capture() -> None:
    """Counterpart of start_capture."""
    if has_accelerator():
        import torch

        torch.cuda.profiler.stop()


def record_allocations(recording: bool) -> None:
    """Begin or end to note what the accelerator's allocator does; there must be one."""
    import torch

    torch.cuda.memory._record_memory_history(enabled="all" if recording else None)


def save_allocations(path: Path) -> None:
    """Write what record_allocations has noted as a pickle."""
    import torch

    torch.cuda.memory._dump_snapshot(str(path))

"""The stand-in itself; only for processes that run_on_fake_gpu starts."""

import contextlib
import traceback
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron import mpu
from megatron.common import device
from megatron.mpu import parameters

aten = torch.ops.aten
RNG_STATE = torch.zeros(16, dtype=torch.uint8)
# Collectives by what they are given first.
COLLECTIVES = (
    "all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_single",
    "reduce_scatter_single", "all_to_all_single", "send", "recv", "isend", "irecv",
)  # fmt: skip


class Stream:
    """Of the GPU, and an event on it: nothing has to be waited for."""

    cuda_stream, device = 0, torch.device("cuda", 0)

    def __init__(self, *arguments, **options):
        pass

    def __getattr__(self, name: str):
        return lambda *arguments, **options: None


def driver() -> dict[str, Any]:
    """What torch.cuda is to be, by name."""
    nothing = ("set_device", "synchronize", "manual_seed", "set_rng_state", "empty_cache", "init")
    zero = (
        "current_device",
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
    )
    types = {"FloatTensor": torch.float32, "IntTensor": torch.int32, "ByteTensor": torch.uint8}
    return {
        **dict.fromkeys((*nothing, "reset_peak_memory_stats", "reset_max_memory_allocated"), lambda *a: None),
        **dict.fromkeys(zero, lambda *a: 0),
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), lambda *a, **k: True),
        **dict.fromkeys(("current_stream", "default_stream", "Stream", "Event"), Stream),
        "stream": lambda stream: contextlib.nullcontext(),
        "device_count": lambda: 1,
        "get_device_capability": lambda *a: (9, 0),
        "get_device_properties": lambda *a: SimpleNamespace(total_memory=80 * 2**30),
        "mem_get_info": lambda *a: (80 * 2**30, 80 * 2**30),
        "memory_stats": lambda *a: {},
        "get_rng_state": lambda *a: RNG_STATE,
        **{
            name: lambda values=(), dtype=dtype: torch.tensor(values, dtype=dtype, device="cuda")
            for name, dtype in types.items()
        },
    }


class FakeGPU(FakeTensorMode):
    """Within the block all tensors are without values.

    Args: world_size: processes, of which this one is the first and the others do not exist; NCCL is what they speak.
    Attributes:
        waits: where this program or DeepSpeed asked for a value on the device, "file: function" of the innermost line.
        strays: collectives over NCCL of tensors in host memory, which it refuses.
    """

    avoid_device_init = supports_higher_order_operators = True

    def __init__(self, world_size: int = 1):
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []
        self.strays: list[str] = []
        self._world_size = world_size
        self._gloo: list = []

    def start(self) -> None:
        """Put the stand-ins in place, for the rest of the process."""
        for name, value in driver().items():
            setattr(torch.cuda, name, value)
        torch.cuda.nvtx.range_push = lambda *a, **k: None
        torch.cuda.nvtx.range_pop = lambda *a, **k: None
        torch.Tensor.record_stream = lambda tensor, stream: None
        torch.nn.Module._apply = _apply
        device.accelerator_count = lambda: 1
        device.backend = lambda requested="nccl": "nccl"
        for module in (mpu, parameters):
            module.initial_value = _initial_value
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=self._world_size)
        new_group = dist.new_group

        def noted(ranks=None, *arguments, backend=None, **options):
            group = new_group(ranks)
            if backend == "gloo":
                self._gloo.append(group)
            return group

        dist.new_group = noted
        dist.get_backend = lambda group=None: "gloo" if group in self._gloo else "nccl"
        dist.all_gather_object = _all_gather_object
        for name in COLLECTIVES:
            if hasattr(dist, name):
                setattr(dist, name, self._watched(name, getattr(dist, name)))

    def _watched(self, name: str, collective):
        def call(*arguments, **options):
            tensors = torch.utils._pytree.tree_leaves(arguments)
            if options.get("group") not in self._gloo and any(
                isinstance(tensor, torch.Tensor) and not tensor.is_cuda for tensor in tensors
            ):
                self.strays.append(f"{name} by {_caller()}")
            return collective(*arguments, **options)

        return call

    def dispatch(self, function, types, arguments=(), options=None):
        if function is aten._local_scalar_dense.default:
            (tensor,) = arguments
            if tensor.is_cuda:
                self.waits.append(_caller())
            return 1.0 if tensor.is_floating_point() else 1
        if function is aten.nonzero.default:
            (tensor,) = arguments
            if tensor.is_cuda:
                self.waits.append(_caller())
            with self:
                return torch.empty(1, tensor.dim(), dtype=torch.int64, device=tensor.device)
        if function in (aten._pin_memory.default, aten.is_pinned.default):
            return arguments[0] if function is aten._pin_memory.default else True
        return super().dispatch(function, types, arguments, options)


def _caller() -> str:
    frames = [
        frame
        for frame in traceback.extract_stack()
        if "/megatron/" in frame.filename or "/deepspeed/" in frame.filename
    ]
    if not frames:
        return "torch"
    frame = frames[-1]
    package = "deepspeed" if "/deepspeed/" in frame.filename else "megatron"
    return f"{package}{frame.filename.rpartition(f'/{package}')[2]}: {frame.name}"


def _apply(module, function, recurse=True):
    """torch's own would exchange parameters for others, which those of this kind do not allow."""
    for child in module.children():
        child._apply(function)
    for parameter in module._parameters.values():
        if parameter is not None:
            changed = function(parameter.detach())
            if changed.dtype != parameter.dtype:
                parameter.data = changed
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _initial_value(parameter, name, seed, use_cpu_initialization=False) -> torch.Tensor:
    """By no generator, since those of a GPU cannot be had."""
    with torch.no_grad():
        return parameters._draw_local(parameter.spec, None, parameter.device)


def _all_gather_object(found: list, own, group=None) -> None:
    found[:] = [own] * len(found)

"""Activation checkpointing: drop the activations of a stretch of layers and recompute them in the backward pass
(arXiv 1604.06174), with the inputs optionally cut over the tensor-parallel group or moved to the CPU (1910.02054).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron.common import device
from megatron.common.timers import Timers
from megatron.mpu import collectives, state
from megatron.mpu.random import get_rng_tracker


@dataclass(frozen=True)
class CheckpointOptions:
    """How the inputs of recomputed stretches are kept.

    Attributes:
        partition_activations: each tensor-parallel rank keeps only its part.
        checkpoint_in_cpu: keep them in host memory.
        contiguous_checkpointing: keep them in buffers that are used again and again, which avoids fragmentation.
        synchronize: wait for the device before and after every stretch (for timing).
        profile: measure the backward passes of the stretches (see backward_seconds).
    """

    partition_activations: bool = False
    checkpoint_in_cpu: bool = False
    contiguous_checkpointing: bool = False
    synchronize: bool = False
    profile: bool = False


_options = CheckpointOptions()
_timers = Timers()


def configure_checkpointing(**options: bool) -> None:
    """Set the options of this process; the names and meanings are CheckpointOptions' ones."""
    global _options
    _options = CheckpointOptions(**options)


def backward_seconds() -> dict[str, float]:
    """{label: seconds} that stretches spent recomputing and in their backward pass since the last call; empty unless
    that is measured. Functions name themselves by an attribute `label`."""
    seconds = _timers.seconds(list(_timers.timers), reset=True)
    return {label: value for label, value in seconds.items() if value}


def checkpoint(function: Callable, *args: Any, replicated: bool = True) -> Any:
    """function(*args), without keeping its activations.

    Args:
        function: of tensors, returning one tensor; what it draws at random is drawn again in the backward pass.
        replicated: the inputs are the same on all tensor-parallel ranks, so that partition_activations may cut them;
            under sequence parallelism they are not.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    # Autograd runs a backward only if some input asks for a gradient; the parameters inside count too.
    anchor = torch.empty(0, requires_grad=True)
    return _Recompute.apply(function, replicated, anchor, *args)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, replicated, anchor, *args):
        ctx.function, ctx.options = function, _options
        ctx.rng_states = _rng_states()
        _synchronize(ctx.options)
        with torch.no_grad():
            output = function(*args)
        _synchronize(ctx.options)
        ctx.kept = [_keep(arg, ctx.options, replicated) for arg in args]
        return output

    @staticmethod
    def backward(ctx, gradient):
        with _measured(ctx.function) if ctx.options.profile else contextlib.nullcontext():
            args = _Recompute.backward_of_stretch(ctx, gradient)
        ctx.kept = None
        gradients = [arg.grad if isinstance(arg, torch.Tensor) else None for arg in args]
        return None, None, None, *gradients

    @staticmethod
    def backward_of_stretch(ctx, gradient) -> list:
        """Recompute and go back; returns the inputs with their gradients."""
        args = [_restore(kept) for kept in ctx.kept]
        _synchronize(ctx.options)
        with _replayed(ctx.rng_states), torch.enable_grad():
            output = ctx.function(*args)
        torch.autograd.backward(output, gradient)
        _synchronize(ctx.options)
        _release_buffers(ctx.kept)
        return args


@contextlib.contextmanager
def _measured(function: Callable) -> Iterator[None]:
    timer = _timers(getattr(function, "label", "a stretch"))
    timer.start()
    try:
        yield
    finally:
        timer.stop()


def _synchronize(options: CheckpointOptions) -> None:
    if options.synchronize:
        device.synchronize()


def _rng_states() -> tuple:
    accelerator_state = device.get_rng_state() if device.has_accelerator() else None
    return torch.get_rng_state(), accelerator_state, get_rng_tracker().get_states()


def _set_rng_states(states: tuple) -> None:
    cpu_state, accelerator_state, tracked = states
    torch.set_rng_state(cpu_state)
    if accelerator_state is not None:
        device.set_rng_state(accelerator_state)
    get_rng_tracker().set_states(tracked)


@contextlib.contextmanager
def _replayed(states: tuple) -> Iterator[None]:
    """Random numbers start from `states` within the block and go on where they were after it."""
    now = _rng_states()
    _set_rng_states(states)
    try:
        yield
    finally:
        _set_rng_states(now)


@dataclass
class _Kept:
    """One input between forward and backward: `tensor` holds it, or the part of it this rank keeps."""

    tensor: torch.Tensor
    shape: torch.Size
    device: torch.device
    requires_grad: bool
    partitioned: bool
    buffer_key: tuple | None


def _keep(arg: Any, options: CheckpointOptions, replicated: bool) -> Any:
    if not isinstance(arg, torch.Tensor):
        return arg
    size = state.get_model_parallel_world_size()
    partitioned = options.partition_activations and replicated and size > 1 and arg.numel() % size == 0
    tensor = arg.detach()
    if partitioned:
        tensor = tensor.reshape(-1).chunk(size)[state.get_model_parallel_rank()].clone()
    if options.checkpoint_in_cpu:
        tensor = tensor.cpu()
    buffer_key = (tensor.shape, tensor.dtype, tensor.device) if options.contiguous_checkpointing else None
    if buffer_key is not None:
        tensor = _buffer(buffer_key).copy_(tensor)
    return _Kept(tensor, arg.shape, arg.device, arg.requires_grad, partitioned, buffer_key)


def _restore(kept: Any) -> Any:
    if not isinstance(kept, _Kept):
        return kept
    tensor = kept.tensor.to(kept.device)
    if kept.partitioned:
        tensor = collectives.all_gather(tensor, dim=0).view(kept.shape)
    return tensor.detach().requires_grad_(kept.requires_grad)


_free_buffers: dict[tuple, list[torch.Tensor]] = {}


def _buffer(key: tuple) -> torch.Tensor:
    """A buffer of this shape, dtype and device that nothing uses at the moment."""
    free = _free_buffers.setdefault(key, [])
    shape, dtype, place = key
    return free.pop() if free else torch.empty(shape, dtype=dtype, device=place)


def forget_buffers() -> None:
    """Give the memory of contiguous_checkpointing back, for when the shapes of activations change."""
    _free_buffers.clear()


def _release_buffers(kept_inputs: list) -> None:
    for kept in kept_inputs:
        if isinstance(kept, _Kept) and kept.buffer_key is not None:
            _free_buffers.setdefault(kept.buffer_key, []).append(kept.tensor)

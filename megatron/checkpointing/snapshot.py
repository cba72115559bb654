"""Copies of a training state in host memory, which go on existing while training changes the state."""

import copy

import torch

from megatron.common import device


class HostMemory:
    """Room for one snapshot, kept from save to save: fresh memory would cost more time than the copying.

    Memory that is filled from a device is pinned, so that all tensors travel without waiting for each other.
    """

    def __init__(self) -> None:
        self._free: dict[tuple, list[torch.Tensor]] = {}
        self._used: dict[tuple, list[torch.Tensor]] = {}

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape and dtype on the host, of any content."""
        size, pinned = tensor.numel() * tensor.element_size(), tensor.device.type != "cpu"
        key = (size, pinned)
        free = self._free.get(key)
        room = free.pop() if free else torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._used.setdefault(key, []).append(room)
        return room.view(tensor.dtype).view(tensor.shape)

    def release(self) -> None:
        """Everything taken since the last release is free again; what was not needed is given up."""
        self._free, self._used = self._used, {}


def snapshot(value, memory: HostMemory):
    """A copy of nested dicts, lists and tuples with all their tensors, and of whatever else they hold.

    Parts of a larger tensor become tensors of their own; tensors that are the same stay the same.
    """
    result = _copy(value, memory, {})
    device.synchronize()
    return result


def _copy(value, memory: HostMemory, known: dict):
    if isinstance(value, torch.Tensor):
        return _copy_tensor(value.detach(), memory, known)
    if isinstance(value, (dict, list)):
        # Keeps the class and what else hangs on it, as the versions on a state dict.
        result = copy.copy(value)
        for key in value if isinstance(value, dict) else range(len(value)):
            result[key] = _copy(value[key], memory, known)
        return result
    if type(value) is tuple:
        return tuple(_copy(item, memory, known) for item in value)
    return copy.deepcopy(value)


def _copy_tensor(tensor: torch.Tensor, memory: HostMemory, known: dict) -> torch.Tensor:
    if tensor.numel() == 0:
        return tensor.cpu().clone()
    key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    if key not in known:
        known[key] = memory.take(tensor).copy_(tensor, non_blocking=True)
    return known[key]

"""Copies of a training state in host memory, which go on existing while training changes the state."""

import copy
from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import torch

from megatron.common import device

_COPIERS = 4


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


def snapshot(value, memory: HostMemory, leave: Collection[str] = ()):
    """A copy of nested dicts, lists and tuples with all their tensors, and of whatever else they hold.

    Parts of a larger tensor become tensors of their own; tensors that are the same stay the same.
    Args: leave: keys whose values are taken as they are.
    """
    pairs: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}
    result = _copy(value, memory, pairs, leave)
    # A single thread does not use up the memory's bandwidth.
    with ThreadPoolExecutor(_COPIERS) as copiers:
        deque(copiers.map(lambda pair: pair[1].copy_(pair[0], non_blocking=True), pairs.values()), maxlen=0)
    device.synchronize()
    return result


def _copy(value, memory: HostMemory, pairs: dict, leave: Collection[str]):
    """The copy, of whose tensors only the room is there: `pairs` takes up what is to be copied into it."""
    if isinstance(value, torch.Tensor):
        return _room_for(value.detach(), memory, pairs)
    if isinstance(value, (dict, list)):
        # Keeps the class and what else hangs on it, as the versions on a state dict.
        result = copy.copy(value)
        for key in value if isinstance(value, dict) else range(len(value)):
            if key not in leave:
                result[key] = _copy(value[key], memory, pairs, leave)
        return result
    if type(value) is tuple:
        return tuple(_copy(item, memory, pairs, leave) for item in value)
    return copy.deepcopy(value)


def _room_for(tensor: torch.Tensor, memory: HostMemory, pairs: dict) -> torch.Tensor:
    if tensor.numel() == 0:
        return tensor.cpu().clone()
    key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    if key not in pairs:
        pairs[key] = tensor, memory.take(tensor)
    return pairs[key][1]

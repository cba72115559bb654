"""Small plain values between ranks, as JSON: nothing that is received can run code."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron.common import device


def _alone(group) -> bool:
    return not dist.is_initialized() or dist.get_world_size(group) == 1


def _encode(value: Any) -> torch.Tensor:
    data = bytearray(json.dumps(value).encode())
    return torch.frombuffer(data, dtype=torch.uint8).to(device.current_device())


def _decode(data: torch.Tensor) -> Any:
    return json.loads(bytes(data.cpu().numpy()).decode())


def broadcast_json(value: Any, src: int = 0, group=None) -> Any:
    """The value of global rank `src`, on all ranks of the group."""
    if _alone(group):
        return value
    data = _encode(value) if dist.get_rank() == src else None
    size = torch.tensor([0 if data is None else data.numel()], device=device.current_device())
    dist.broadcast(size, src, group=group)
    if data is None:
        data = torch.empty(int(size), dtype=torch.uint8, device=size.device)
    dist.broadcast(data, src, group=group)
    return _decode(data)


def broadcast_numbers(numbers: list[int] | None, src: int = 0, group=None) -> torch.Tensor:
    """The whole numbers of global rank `src`, int64 [n] on this rank's device, on all ranks of the group."""
    target = device.current_device()
    if _alone(group):
        return torch.tensor(numbers, dtype=torch.int64, device=target)
    own = torch.tensor(numbers, dtype=torch.int64, device=target) if dist.get_rank() == src else None
    size = torch.tensor([0 if own is None else own.numel()], device=target)
    dist.broadcast(size, src, group=group)
    values = torch.empty(int(size), dtype=torch.int64, device=target) if own is None else own
    dist.broadcast(values, src, group=group)
    return values


def all_gather_json(value: Any, group=None) -> list:
    """The values of all ranks of the group, in rank order, on all of them."""
    if _alone(group):
        return [value]
    data = _encode(value)
    sizes = [torch.zeros(1, dtype=torch.int64, device=data.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([data.numel()], device=data.device), group=group)
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=data.device)
    padded[: data.numel()] = data
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded, group=group)
    return [_decode(row[: int(size)]) for row, size in zip(received, sizes, strict=True)]


@contextmanager
def heartbeat(speak: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `speak` now and then while this rank is busy and the others wait for it in a collective, which would give up
    if nobody spoke for minutes. Nothing is spoken any more once the block has ended."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(seconds):
            speak()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

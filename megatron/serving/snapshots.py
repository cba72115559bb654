"""Copies of a rank's weights that never show half a step."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch


class Unavailable(Exception):
    """The weights of the wanted iteration cannot be had."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The weights after an iteration, on the host.

    Attributes: tensors: this rank's part of each parameter; table: {name: what the part is of}, see `describe`.
    """

    iteration: int
    tensors: dict[str, torch.Tensor]
    table: dict[str, dict]


class _Demand:
    """What a thread waits for: the weights of an iteration to come."""

    def __init__(self, iteration: int):
        self.iteration = iteration
        self.snapshot: Snapshot | None = None
        self.problem: str | None = None

    @property
    def settled(self) -> bool:
        return self.snapshot is not None or self.problem is not None


class WeightKeeper:
    """Copies weights when somebody asks for them, and keeps the copies for as long as somebody holds them.

    Training changes the weights within `changing` only; a copy that was asked for holds it up, and nothing else.

    Args: named: gives (name, parameter) of this rank; iteration: gives the number of the last finished iteration.
    """

    def __init__(
        self,
        named: Callable[[], Iterable[tuple[str, torch.nn.Parameter]]],
        iteration: Callable[[], int] = lambda: 0,
    ):
        self._named, self._iteration = named, iteration
        self._changed = threading.Condition()
        self._copies: weakref.WeakValueDictionary[int, Snapshot] = weakref.WeakValueDictionary()
        self._demands: list[_Demand] = []
        self._ended = False

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Around what changes the weights."""
        with self._changed:
            yield
            now = self._iteration()
            for demand in [demand for demand in self._demands if demand.iteration <= now]:
                self._demands.remove(demand)
                self._settle(demand, now)
            self._changed.notify_all()

    def end(self) -> None:
        """No further iteration will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def iteration(self) -> int:
        with self._changed:
            return self._iteration()

    def after(self, iteration: int | None, seconds: float) -> Snapshot:
        """The weights after an iteration, waited for up to `seconds`; of the last finished one for None.

        Raises: Unavailable if it has passed, does not come in time, or will never come.
        """
        with self._changed:
            now = self._iteration()
            demand = _Demand(now if iteration is None else iteration)
            if demand.iteration <= now:
                self._settle(demand, now)
            else:
                self._demands.append(demand)
                self._changed.wait_for(lambda: demand.settled or self._ended, seconds)
                if demand in self._demands:
                    self._demands.remove(demand)
            if demand.snapshot is not None:
                return demand.snapshot
            why = demand.problem or ("training has ended" if self._ended else f"not within {seconds:g} s")
            raise Unavailable(f"iteration {demand.iteration}: {why}; now {self._iteration()}")

    def _settle(self, demand: _Demand, now: int) -> None:
        if demand.iteration < now:
            demand.problem = "it has passed"
            return
        # A copy that finds no memory must not end the training.
        try:
            demand.snapshot = self._copies.get(now) or self._copy(now)
        except (RuntimeError, MemoryError) as error:
            demand.problem = " ".join(str(error).split())

    @torch.no_grad()
    def _copy(self, now: int) -> Snapshot:
        tensors, table = {}, {}
        for name, parameter in self._named():
            tensors[name] = held(parameter).detach().to("cpu", copy=True).contiguous()
            table[name] = describe(parameter, tensors[name])
        copied = self._copies[now] = Snapshot(now, tensors, table)
        return copied


def held(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this rank has of a parameter: its tensor-parallel part, or with ZeRO-3 a flat piece of that."""
    return getattr(parameter, "ds_tensor", parameter)


def describe(parameter: torch.nn.Parameter, part: torch.Tensor) -> dict:
    """What a client needs in order to put a parameter together.

    shape: of this rank's tensor-parallel part; logical_shape, shard_dim, blocks: see mpu.ParameterSpec; pieces: 1, or
    with ZeRO-3 the number of ranks over which that part is spread, flat and padded, and `piece`: which of them this is.
    """
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    spec = getattr(parameter, "spec", None)
    pieces, piece = 1, 0
    if hasattr(parameter, "ds_tensor"):
        group = parameter.ds_process_group
        pieces, piece = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    return {
        "dtype": str(part.dtype).removeprefix("torch."),
        "shape": list(shape),
        "logical_shape": list(spec.logical_shape if spec else shape),
        "shard_dim": spec.shard_dim if spec else None,
        "blocks": list(spec.blocks) if spec else [],
        "pieces": pieces,
        "piece": piece,
        "bytes": part.numel() * part.element_size(),
    }

"""The process grid: which ranks this process forms its tensor, data and pipeline groups with.

One frozen ParallelState describes it; the getters of megatron.mpu are views of the current one. Ranks are numbered
rank = (pipe * DP + data) * MP + model, so a tensor-parallel group is a run of neighbours.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Axis:
    """One axis of the grid seen from this process: the global ranks along it, own position, process group."""

    ranks: tuple[int, ...] = (0,)
    rank: int = 0
    group: Any = None

    @property
    def size(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True)
class ParallelState:
    """The grid of this process. The default is one process on its own, without process groups."""

    tensor: Axis = field(default_factory=Axis)
    data: Axis = field(default_factory=Axis)
    pipe: Axis = field(default_factory=Axis)
    io: Axis = field(default_factory=Axis)
    topology: Any = None
    fp32_allreduce: bool = False

    @property
    def initialized(self) -> bool:
        return self.tensor.group is not None


_ALONE = ParallelState()
_current = _ALONE


def current() -> ParallelState:
    """The state in force."""
    return _current


def set_current(state: ParallelState) -> None:
    global _current
    _current = state


@contextlib.contextmanager
def use(state: ParallelState) -> Iterator[ParallelState]:
    """Put `state` in force within the block."""
    before = _current
    set_current(state)
    try:
        yield state
    finally:
        set_current(before)


def initialize_model_parallel(
    model_parallel_size: int, topology: Any = None, fp32_allreduce: bool = False
) -> None:
    """Build the process groups; collective over all ranks.

    Args:
        model_parallel_size: tensor-parallel degree.
        topology: object with get_axis_comm_lists(axis) and get_dim(axis) for the axes pipe, data, model. Without one,
            consecutive ranks form the tensor groups and there is one pipeline stage.
        fp32_allreduce: tensor-parallel reductions of 16-bit tensors are done in fp32.
    """
    assert dist.is_initialized(), "torch.distributed must be initialised first"
    world_size, rank = dist.get_world_size(), dist.get_rank()
    lists = _axis_lists(world_size, model_parallel_size, topology)
    axes = {name: _build_axis(groups, rank) for name, groups in lists.items()}
    if topology is None or len(axes["pipe"].ranks) == 1:
        axes["io"] = axes["data"]
    else:
        axes["io"] = _build_axis([_io_ranks(lists)], rank)
    set_current(ParallelState(**axes, topology=topology, fp32_allreduce=fp32_allreduce))


def _axis_lists(world_size: int, tensor_size: int, topology: Any) -> dict[str, list[list[int]]]:
    """The rank lists of every group of the axes pipe, data, tensor."""
    if topology is None:
        assert world_size % tensor_size == 0, f"{world_size} ranks cannot form groups of {tensor_size}"
        return {
            "pipe": [[rank] for rank in range(world_size)],
            "data": [list(range(first, world_size, tensor_size)) for first in range(tensor_size)],
            "tensor": [
                list(range(first, first + tensor_size)) for first in range(0, world_size, tensor_size)
            ],
        }
    assert max(1, topology.get_dim("model")) == tensor_size, "topology and model_parallel_size disagree"
    lists = {name: topology.get_axis_comm_lists(axis) for name, axis in _TOPOLOGY_AXES.items()}
    # A topology lists nothing for an axis of size 1: every rank is then a group of its own.
    return {name: groups or [[rank] for rank in range(world_size)] for name, groups in lists.items()}


_TOPOLOGY_AXES = {"pipe": "pipe", "data": "data", "tensor": "model"}


def _io_ranks(lists: dict[str, list[list[int]]]) -> list[int]:
    """Tensor rank 0 of the first and the last stage: the ranks that touch data."""
    first_of_tensor_group = {group[0] for group in lists["tensor"]}
    ends = {rank for group in lists["pipe"] for rank in (group[0], group[-1])}
    return sorted(first_of_tensor_group & ends)


def _build_axis(groups: list[list[int]], rank: int) -> Axis:
    """Create every group of an axis (all ranks must take part) and return the one this rank is in."""
    own = Axis(ranks=(), rank=-1)
    for ranks in groups:
        group = dist.new_group(ranks=ranks)
        if rank in ranks:
            own = Axis(ranks=tuple(ranks), rank=ranks.index(rank), group=group)
    return own


def destroy_model_parallel() -> None:
    """Forget the grid; the process groups themselves belong to torch.distributed."""
    set_current(_ALONE)


def model_parallel_is_initialized() -> bool:
    return _current.initialized


def is_uninitialized() -> bool:
    return not _current.initialized


is_unitialized = is_uninitialized  # the name GPT-NeoX users import


def set_model_parallel_world_size(world_size: int) -> None:
    """Pretend a tensor-parallel degree, for set-up before the process groups exist."""
    set_current(replace(_current, tensor=replace(_current.tensor, ranks=tuple(range(world_size)))))


def set_model_parallel_rank(rank: int) -> None:
    """Pretend a tensor-parallel rank, for set-up before the process groups exist."""
    set_current(replace(_current, tensor=replace(_current.tensor, rank=rank)))


def get_topology() -> Any:
    return _current.topology


def get_fp32_allreduce() -> bool:
    return _current.fp32_allreduce


def _group(axis: Axis, name: str) -> Any:
    assert axis.group is not None, f"the {name} group is not initialised"
    return axis.group


def get_model_parallel_group() -> Any:
    return _group(_current.tensor, "model parallel")


def get_data_parallel_group() -> Any:
    return _group(_current.data, "data parallel")


def get_pipe_parallel_group() -> Any:
    return _group(_current.pipe, "pipe parallel")


def get_io_parallel_group() -> Any:
    """The data-parallel group, or with a pipeline the ranks that touch data: tensor rank 0 of both end stages.

    Raises AssertionError on a rank outside of it.
    """
    return _group(_current.io, "io parallel")


def get_model_parallel_world_size() -> int:
    return _current.tensor.size


def get_data_parallel_world_size() -> int:
    return _current.data.size


def get_pipe_parallel_world_size() -> int:
    return _current.pipe.size


def get_model_parallel_rank() -> int:
    return _current.tensor.rank


def get_data_parallel_rank() -> int:
    return _current.data.rank


def get_pipe_parallel_rank() -> int:
    return _current.pipe.rank


def get_model_parallel_src_rank() -> int:
    """Global rank of the first rank of the own tensor-parallel group."""
    return _current.tensor.ranks[0]


def get_data_parallel_src_rank() -> int:
    """Global rank of the first rank of the own data-parallel group."""
    return _current.data.ranks[0]


def get_data_parallel_group_ranks() -> list[int]:
    """Global ranks of the own data-parallel group (asked for by DeepSpeed)."""
    return list(_current.data.ranks)


# The names that Megatron and DeepSpeed use for the same axes.
get_tensor_model_parallel_group = get_model_parallel_group
get_tensor_model_parallel_rank = get_model_parallel_rank
get_tensor_model_parallel_world_size = get_model_parallel_world_size
get_tensor_model_parallel_src_rank = get_model_parallel_src_rank
get_pipeline_model_parallel_group = get_pipe_parallel_group
get_pipeline_model_parallel_rank = get_pipe_parallel_rank
get_pipeline_model_parallel_world_size = get_pipe_parallel_world_size

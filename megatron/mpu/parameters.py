"""Parameters that know their shard.

Every parameter carries a ParameterSpec: the shape it would have in one process, how that is cut over tensor-parallel
ranks, and how it is initialised. Initial values are drawn for the whole logical tensor from (seed, logical name) and
then cut, so they are the same in every layout.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from megatron.mpu import state
from megatron.mpu.utils import divide

InitMethod = Callable[[torch.Tensor, torch.Generator | None], object]


def zeros_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return tensor.zero_()


def ones_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return tensor.fill_(1.0)


@dataclass(frozen=True)
class ParameterSpec:
    """The logical (unsharded) side of a parameter.

    Attributes:
        logical_shape: shape in a single process.
        init: fills the fp32 logical tensor in place, drawing from the given generator.
        shard_dim: dimension cut over tensor-parallel ranks; None for a replicated parameter.
        blocks: logical sizes, along shard_dim, of parts that are each cut over the ranks on their own (q|k|v of
            grouped-query attention, up|gate of a gated MLP); empty means one block.
        vocabulary: its rows stand for tokens, and those of the padding are as many as the layout needs.
        shared: all parameters of a model with the same name here are one (megatron/model/sharing.py); empty for a
            parameter of its layer alone.
    """

    logical_shape: tuple[int, ...]
    init: InitMethod
    shard_dim: int | None = None
    blocks: tuple[int, ...] = ()
    shared: str = ""
    vocabulary: bool = False

    def local_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one rank's part in a group of `size`."""
        if self.shard_dim is None:
            return self.logical_shape
        shape = list(self.logical_shape)
        assert not self.blocks or sum(self.blocks) == shape[self.shard_dim]
        for block in self.blocks:
            divide(block, size)
        shape[self.shard_dim] = divide(shape[self.shard_dim], size)
        return tuple(shape)


def local_slice(logical: torch.Tensor, spec: ParameterSpec, rank: int, size: int) -> torch.Tensor:
    """The part of `logical` that `rank` of `size` holds (a view where possible)."""
    if spec.shard_dim is None or size == 1:
        return logical
    blocks = spec.blocks or (spec.logical_shape[spec.shard_dim],)
    parts = [block.chunk(size, spec.shard_dim)[rank] for block in logical.split(blocks, spec.shard_dim)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, spec.shard_dim)


def merge_slices(slices: list[torch.Tensor], spec: ParameterSpec) -> torch.Tensor:
    """The logical tensor from the parts of all ranks, in rank order; replicas are taken from the first."""
    if spec.shard_dim is None or len(slices) == 1:
        return slices[0]
    blocks = spec.blocks or (spec.logical_shape[spec.shard_dim],)
    local_blocks = [divide(block, len(slices)) for block in blocks]
    by_rank = [part.split(local_blocks, spec.shard_dim) for part in slices]
    merged = [torch.cat(same_block, spec.shard_dim) for same_block in zip(*by_rank, strict=True)]
    return torch.cat(merged, spec.shard_dim)


_deferred = False


@contextlib.contextmanager
def deferred_initialization() -> Iterator[None]:
    """Within the block make_parameter leaves values uninitialised, for a later initialize_parameters."""
    global _deferred
    before, _deferred = _deferred, True
    try:
        yield
    finally:
        _deferred = before


def make_parameter(spec: ParameterSpec, device: torch.device | str | None = None) -> torch.nn.Parameter:
    """This rank's part as an fp32 parameter with its spec attached.

    Attributes set: spec, model_parallel (whether it is cut; gradient norms count others once), partition_dim,
    partition_stride. Attributes that the caller may set, for optimizers that look at matrices: is_table (rows stand for
    tokens or positions), fused_matrices (see megatron.optimizers.muon). A layer built on its own gets its values here,
    from torch's default generator; a model defers that to initialize_parameters.
    """
    shape = spec.local_shape(state.get_model_parallel_world_size())
    parameter = torch.nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))
    parameter.spec = spec
    parameter.model_parallel = spec.shard_dim is not None
    parameter.partition_dim = -1 if spec.shard_dim is None else spec.shard_dim
    parameter.partition_stride = max(1, len(spec.blocks))
    if not _deferred and not parameter.is_meta:
        with torch.no_grad():
            parameter.copy_(_draw_local(spec, None, parameter.device))
    return parameter


def draw_logical(
    spec: ParameterSpec, generator: torch.Generator | None, device: torch.device
) -> torch.Tensor:
    """Initial value of the whole logical tensor, fp32."""
    logical = torch.empty(spec.logical_shape, dtype=torch.float32, device=device)
    spec.init(logical, generator)
    return logical


def _draw_local(spec: ParameterSpec, generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    logical = draw_logical(spec, generator, device)
    size, rank = state.get_model_parallel_world_size(), state.get_model_parallel_rank()
    return local_slice(logical, spec, rank, size)


def stable_seed(seed: int, name: str) -> int:
    """63-bit generator seed of a parameter: the same on every machine, process and Python version."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.no_grad()
def initial_value(
    parameter: torch.nn.Parameter, name: str, seed: int, use_cpu_initialization: bool = False
) -> torch.Tensor:
    """This rank's part of the initial value of the parameter with logical name `name`, fp32.

    The draw happens on the parameter's device, or on CPU with `use_cpu_initialization`; the two give different numbers.
    """
    device = torch.device("cpu") if use_cpu_initialization else parameter.device
    generator = torch.Generator(device).manual_seed(stable_seed(seed, name))
    return _draw_local(parameter.spec, generator, device)


@torch.no_grad()
def initialize_parameters(
    named: Iterable[tuple[str, torch.nn.Parameter]], seed: int, use_cpu_initialization: bool = False
) -> None:
    """Give every (logical name, parameter) its initial value; parameters on the meta device are left alone."""
    for name, parameter in named:
        if not parameter.is_meta:
            parameter.copy_(initial_value(parameter, name, seed, use_cpu_initialization))

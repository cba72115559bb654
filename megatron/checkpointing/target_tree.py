"""The files of a checkpoint in a layout, as DeepSpeed lays them out, with tensors that are fetched when written."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from megatron.checkpointing.parameter_table import GROUPS, PARAMETERS, describe
from megatron.checkpointing.saved_optimizer import COVER, MASTER, covered, ranges
from megatron.checkpointing.source_tree import SourceTree
from megatron.checkpointing.streamed_file import Piece, Streamed, whole_tensor
from megatron.common.errors import CheckpointError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}
# What of a model rank's file belongs to its layout, or is given in the file of each process.
_REPLACED = (
    "module", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params",
    "buffer_names", "dp_world_size", "mp_world_size", PARAMETERS, GROUPS, "total_iters", "checkpoint_parallel_dims",
    "random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state", "rng_tracker_states",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Data-parallel, tensor-parallel and pipeline ranks (pipe 0: no pipeline), ZeRO stage and precision as in a
    config."""

    data: int
    tensor: int
    pipe: int
    zero: int
    precision: str

    @property
    def partitioned(self) -> bool:
        """Whether ZeRO 1 or 2 cuts the optimizer's states, as it does for all runs in 16 bit."""
        return self.zero in (1, 2) or (self.zero == 0 and self.precision != "fp32")


class TargetTree:
    """{file name: function that gives its content} of a checkpoint in `layout`."""

    def __init__(self, source: SourceTree, layout: Layout, iteration: int, with_optimizer: bool):
        self.source, self.layout, self.iteration = source, layout, iteration
        self.dtype = DTYPES[layout.precision]
        groups = self._groups(with_optimizer)
        self.groups = groups if with_optimizer else []
        self.trained = {name for group in groups for name in group}
        self.zero = layout.zero if with_optimizer else 0
        if self.zero == 3 and (layout.pipe or set(source.specs) - self.trained):
            raise CheckpointError(
                "ZeRO 3 has no pipelines, and is not written for models with frozen parameters"
            )
        self._steps = source.optimizer.stage(0, 0).steps if with_optimizer else None

    def _groups(self, needed: bool) -> list[list[str]]:
        """Optimizer groups, whose copies of the weights are the exact ones; none where they lack and are not needed."""
        try:
            return self.source.groups()
        except CheckpointError:
            if needed:
                raise
            return []

    def files(self) -> dict[str, Callable[[], dict]]:
        found: dict[str, Callable[[], dict]] = {}
        for rank in range(self.layout.tensor):
            for stage in range(max(1, self.layout.pipe)):
                number = stage * self.layout.tensor + rank
                file = f"mp_rank_{number:02d}_model_states.pt"
                if self.zero == 3:
                    for data in range(self.layout.data):
                        found[f"zero_pp_rank_{data}_{file}"] = partial(self._model_rank, stage, rank)
                else:
                    found[file] = partial(self._model_rank, stage, rank)
                if self.groups and (self.layout.partitioned or self.zero == 3):
                    start = "bf16_" if self.layout.precision == "bfloat16" and self.zero != 3 else ""
                    for data in range(self.layout.data):
                        name = f"{start}zero_pp_rank_{data}_mp_rank_{number:02d}_optim_states.pt"
                        found[name] = partial(self._partition, stage, rank, data)
            for layer in self._layers() if self.layout.pipe else []:
                found[f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"] = partial(
                    self._layer, layer, rank
                )
        return found

    def _layers(self) -> list[int]:
        return sorted({_layer(name) for name in self.source.specs})

    def _stage_of(self, layer: int) -> int:
        """Blocks are shared out evenly, what is before and after them goes to the first and the last stage."""
        count = int(self.source.args.get("num_layers", len(self._layers())))
        block = min(max(layer - 2, 0), count - 1)
        return block * max(1, self.layout.pipe) // count

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.source.specs[name].local_shape(self.layout.tensor)

    def _stage_groups(self, stage: int) -> list[list[str]]:
        groups = [[name for name in group if self._stage_of(_layer(name)) == stage] for group in self.groups]
        return [group for group in groups if group]

    def _weights(self, names: list[str], prefix: str, rank: int) -> dict[str, Streamed]:
        def read(name: str) -> torch.Tensor:
            return self.source.weight(name, self.dtype, rank, name in self.trained)

        return {
            f"{prefix}{name}": whole_tensor(self._shape(name), self.dtype, partial(read, name))
            for name in names
        }

    def _layer(self, layer: int, rank: int) -> dict:
        names = [name for name in self.source.specs if _layer(name) == layer]
        weights = self._weights(names, "", rank)
        return {name.split(".", 1)[1]: value for name, value in weights.items()}

    def _model_rank(self, stage: int, rank: int) -> dict:
        source, layout = self.source, self.layout
        names = [name for name in source.specs if self._stage_of(_layer(name)) == stage]
        groups = self._stage_groups(stage)
        rows = next((spec.logical_shape[0] for spec in source.specs.values() if spec.vocabulary), None)
        kept = {key: value for key, value in source.state.items() if key not in _REPLACED}
        arguments = {"model_parallel_size": layout.tensor} | (
            {} if rows is None else {"padded_vocab_size": rows}
        )
        content = kept | {
            "iteration": self.iteration,
            "args": {**source.args, **arguments},
            "dp_world_size": layout.data,
            "mp_world_size": layout.tensor,
            "module": None if layout.pipe or self.zero == 3 else self._weights(names, "sequential.", rank),
            "optimizer": None if groups else {},
            "param_shapes": [{name: torch.Size(self._shape(name)) for name in group} for group in groups],
            PARAMETERS: {name: describe(source.specs[name], self._shape(name)) for name in names},
            GROUPS: groups,
        }
        if groups and not layout.partitioned and self.zero != 3:
            content["optimizer"] = self._plain_optimizer(groups, rank)
        return content

    def _plain_optimizer(self, groups: list[list[str]], rank: int) -> dict:
        """Without ZeRO: states by parameter."""
        numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
        states = {}
        for name, number in numbers.items():
            slot = self.source.slot(name)
            kinds = sorted(slot.kinds() - {MASTER})
            states[number] = {
                kind: whole_tensor(
                    self._shape(name), torch.float32, partial(self.source.part, name, kind, rank)
                )
                for kind in kinds
            } | {kind: self._cover([name], kind, rank) for kind in sorted(slot.covers)}
            if states[number]:
                states[number] |= self._step(slot.steps)
        members = [{"params": [numbers[name] for name in group], **self._group_step()} for group in groups]
        return {"state": states, "param_groups": members, **self._scaler()}

    def _partition(self, stage: int, rank: int, data: int) -> dict:
        """ZeRO: one data-parallel rank's share of the flat states."""
        groups = self._stage_groups(stage)
        flats, states = [], {}
        for number, group in enumerate(groups):
            kinds = sorted(set().union(*(self.source.slot(name).kinds() for name in group)) - {MASTER})
            flats.append(self._flat(group, MASTER, rank, data))
            state = {kind: self._flat(group, kind, rank, data) for kind in kinds} | self._covers(
                group, rank, data
            )
            states[number] = state | (self._step(None) if state else {})
        members = [{"params": [number], **self._group_step()} for number in range(len(groups))]
        base = {"state": states, "param_groups": members}
        if self.zero == 3:
            inner = {"fp32_flat_groups": flats, "optimizer_state_dict": base}
        else:
            inner = {"single_partition_of_fp32_groups": flats, "base_optimizer_state": base}
        inner |= {"zero_stage": max(1, self.zero), "partition_count": self.layout.data, **self._scaler()}
        return {"optimizer_state_dict": inner, "ds_version": self.source.state.get("ds_version", "")}

    def _flat(self, group: list[str], kind: str, rank: int, data: int) -> Streamed:
        shapes = {name: self._shape(name) for name in group}
        if self.zero == 3:
            return self._flat_of_parts(shapes, kind, rank, data)
        begin, end = self._bounds(shapes)[data]
        pieces = []
        for name, start, stop in ranges(shapes):
            first, last = max(start, begin), min(stop, end)
            if first < last:
                read = partial(self._values, name, kind, rank, first - start, last - start)
                pieces.append(Piece(first - begin, last - begin, read))
        return Streamed((end - begin,), torch.float32, pieces)

    def _flat_of_parts(self, shapes: dict[str, tuple[int, ...]], kind: str, rank: int, data: int) -> Streamed:
        """ZeRO 3 gives every rank a part of each parameter, the last one padded."""
        pieces, offset = [], 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            part = math.ceil(size / self.layout.data)
            first, last = min(size, part * data), min(size, part * (data + 1))
            if first < last:
                read = partial(self._values, name, kind, rank, first, last)
                pieces.append(Piece(offset, offset + last - first, read))
            offset += part
        return Streamed((offset,), torch.float32, pieces)

    def _bounds(self, shapes: dict[str, tuple[int, ...]]) -> list[tuple[int, int]]:
        """First and last value of each data-parallel rank, without padding."""
        total, ranks = sum(math.prod(shape) for shape in shapes.values()), self.layout.data
        part = math.ceil(total / ranks)
        return [(min(total, part * rank), min(total, part * (rank + 1))) for rank in range(ranks)]

    def _values(self, name: str, kind: str, rank: int, first: int, last: int) -> torch.Tensor:
        """Values of a state; of a parameter that has had no gradient yet it is zero."""
        if kind != MASTER and kind not in self.source.slot(name).kinds():
            return torch.zeros(last - first)
        return self.source.part(name, kind, rank).flatten()[first:last]

    def _covers(self, group: list[str], rank: int, data: int) -> dict[str, Streamed]:
        shapes = {name: self._shape(name) for name in group}
        names = list(covered([end - begin for begin, end in self._bounds(shapes)], shapes))[data]
        kinds = sorted({kind for name in names for kind in self.source.slot(name).covers})
        return {
            kind: self._cover([name for name in names if kind in self.source.slot(name).covers], kind, rank)
            for kind in kinds
        }

    def _cover(self, names: list[str], kind: str, rank: int) -> Streamed:
        dim, pieces, offset = int(kind.removeprefix(COVER)), [], 0
        for name in names:
            length = (self._shape(name) or (1,))[dim]
            pieces.append(Piece(offset, offset + length, partial(self.source.part, name, kind, rank)))
            offset += length
        return Streamed((offset,), torch.float32, pieces)

    def _step(self, own: int | None) -> dict:
        steps = self._steps if own is None else own
        return {} if steps is None else {"step": torch.tensor(float(steps))}

    def _group_step(self) -> dict:
        return {} if self._steps is None else {"step": self._steps}

    def _scaler(self) -> dict:
        scaler = self.source.optimizer.stage(0, 0).scaler
        return {"dynamic_loss_scale": bool(scaler), **scaler}


def _layer(name: str) -> int:
    return int(name.split(".")[0])

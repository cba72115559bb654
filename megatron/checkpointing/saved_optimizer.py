"""Optimizer states out of a checkpoint tree, by logical parameter name, whatever the layout that wrote it.

DeepSpeed (0.5 to 0.19) keeps them flat: the parameters of an optimizer group laid end to end in the order of
`param_shapes`, and with ZeRO cut into one partition per data-parallel rank. Where a parameter lies follows from that.
"""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from megatron.checkpointing.model_files import ModelFiles
from megatron.checkpointing.parameter_table import GROUPS, saved_groups
from megatron.checkpointing.safe_engine import load_file
from megatron.checkpointing.weights import SavedWeights, join_halves, native_name
from megatron.common.errors import CheckpointError

# The fp32 copy of a parameter, which 16-bit runs and ZeRO keep, beside the optimizer's own kinds (exp_avg, ...).
MASTER = "master"
# A state with one value for each index of a dimension, whose number follows (megatron.optimizers.sm3).
COVER = "accumulator_"

_PARTITION_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_OF_A_NORM = re.compile(r"norm\w*\.[^.]+$")
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

# Values by which a flat tensor may be longer than its parameters together.
_MOST_PADDING = 32

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Flat:
    """Tensors of one kind that were one before they were cut, in order."""

    parts: list[torch.Tensor]

    @property
    def size(self) -> int:
        return sum(part.numel() for part in self.parts)

    def between(self, start: int, stop: int) -> torch.Tensor:
        """Values start..stop-1, copied only where they lie in several parts."""
        found, offset = [], 0
        for part in self.parts:
            first, last = max(start - offset, 0), min(stop - offset, part.numel())
            if first < last:
                found.append(part.flatten()[first:last])
            offset += part.numel()
        return found[0] if len(found) == 1 else torch.cat(found)


@dataclass(frozen=True)
class Slot:
    """Where the values of one parameter lie: [(flat tensors by kind, start, stop), ...] joined, of `shape`.

    Attributes: covers: states with one value per index of a dimension, by kind; steps: those that the optimizer has
    taken, if that was kept for this parameter alone.
    """

    shape: tuple[int, ...]
    pieces: list[tuple[dict[str, Flat], int, int]]
    covers: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: int | None = None

    def kinds(self) -> set[str]:
        return set(self.pieces[0][0])

    def value(self, kind: str) -> torch.Tensor:
        return torch.cat([flats[kind].between(start, stop) for flats, start, stop in self.pieces]).view(
            self.shape
        )


@dataclass(frozen=True)
class StageStates:
    """The optimizer of one model rank: slots by logical name, names by optimizer group, steps taken if that was kept,
    and the state of the loss scaler, by the names of its attributes."""

    slots: dict[str, Slot]
    groups: list[list[str]]
    steps: int | None
    scaler: dict


class SavedOptimizer:
    """The optimizer states of a checkpoint; files are opened when a parameter of theirs is asked for.

    Raises (all methods): CheckpointError, naming the file and the key, when states are missing or of an unknown form.
    """

    def __init__(self, weights: SavedWeights, files: ModelFiles):
        self.weights, self.files = weights, files
        self._stages: dict[tuple[int, int], StageStates] = {}

    def stage(self, stage: int, tensor_rank: int) -> StageStates:
        if (stage, tensor_rank) not in self._stages:
            self._stages[stage, tensor_rank] = self._read(stage, tensor_rank)
        return self._stages[stage, tensor_rank]

    def slot(self, name: str, tensor_rank: int, likely_stage: int = 0) -> Slot:
        """The states of a parameter, of a tensor rank's part; looked for in `likely_stage` first."""
        others = (stage for stage in range(self.files.stages) if stage != likely_stage)
        for stage in itertools.chain([likely_stage] if likely_stage < self.files.stages else [], others):
            slots = self.stage(stage, tensor_rank).slots
            if name in slots:
                return slots[name]
        raise CheckpointError(
            f"{self.files.directory} has no optimizer state of {name}: set no_load_optim or finetune"
        )

    def value(self, name: str, kind: str, tensor_rank: int, likely_stage: int = 0) -> torch.Tensor:
        """A state of a parameter, or its fp32 copy, for which the weight itself stands where there is no other.

        Raises: CheckpointError for states of 8 bits, whose scales belong to places in the writer's flat tensors.
        """
        slot = self.slot(name, tensor_rank, likely_stage)
        if kind == MASTER and MASTER not in slot.kinds():
            return self.weights.part(name, tensor_rank)
        value = slot.value(kind)
        if not value.is_floating_point():
            raise CheckpointError(
                f"{self.files.directory} has optimizer states in 8 bits, which only the layout that wrote them can read"
                ": keep the layout, or take the weights only with no_load_optim or finetune"
            )
        return value

    def _read(self, stage: int, tensor_rank: int) -> StageStates:
        state, path = self.files.state(stage, tensor_rank), self.files.path(stage, tensor_rank)
        if state.get(GROUPS) == []:
            # Nothing of this stage is trained, as where there is a soft prompt only.
            return StageStates({}, [], None, {})
        shapes = saved_groups(state) or _named_shapes(state.get("param_shapes"))
        if state.get("optimizer"):
            partitions, path = [state["optimizer"]], path
        else:
            partitions, path = self._partitions(state, stage * self.files.tensor_size + tensor_rank)
        first = partitions[0]
        key = next((key for key in _READERS if key in first), None)
        if key is None:
            raise CheckpointError(
                f"{path} has an optimizer state of an unknown form (none of the keys {', '.join(_READERS)}): set "
                "no_load_optim or finetune"
            )
        count = len(first["param_groups"] if key == "state" else first[key])
        groups = shapes or self._groups_in_module_order(stage, tensor_rank, count)
        reader = _READERS[key]
        # ZeRO 3 divides the groups further.
        if len(groups) != count and reader is not _read_zero3:
            raise _misfit(path, count, len(groups), "groups")
        slots = join_halves(reader(partitions, groups, path), _end_to_end)
        names = [list(join_halves(group, list)) for group in groups]
        return StageStates(slots, names, _steps(first), _scaler(first))

    def _partitions(self, state: dict, model_rank: int) -> tuple[list[dict], Path]:
        """The states of all data-parallel ranks of a model rank, and the first one's file."""
        directory = self.files.directory
        matches = ((_PARTITION_FILE.fullmatch(path.name), path) for path in directory.iterdir())
        found = {int(match[1]): path for match, path in matches if match and int(match[2]) == model_rank}
        count = int(state.get("dp_world_size", len(found)))
        lacking = sorted(set(range(count)) - set(found))
        if not found:
            raise CheckpointError(
                f"{directory} has no optimizer state (no *_mp_rank_{model_rank:02d}_optim_states.pt, and no key "
                "optimizer in the model file): set no_load_optim or finetune"
            )
        if lacking:
            raise CheckpointError(
                f"{directory} has no *zero_pp_rank_{lacking[0]}_mp_rank_{model_rank:02d}_optim_states.pt, one of "
                f"{count} files of the data-parallel ranks"
            )
        files = [load_file(found[rank], mmap=True) for rank in range(count)]
        return [_required(file, "optimizer_state_dict", found[0]) for file in files], found[0]

    def _shapes_of_stages(self, shapes: Shapes, tensor_rank: int) -> list[Shapes]:
        """The parameters of each pipeline stage: the layers in turn, as many as the stage has states of."""
        layers: dict[str, Shapes] = {}
        for name, shape in shapes.items():
            layers.setdefault(name.split(".")[0], {})[name] = shape
        waiting, stages = list(layers.values()), []
        for stage in range(self.files.stages):
            room, counted = _size(self.files.state(stage, tensor_rank).get("optimizer") or {})
            own: Shapes = {}
            while waiting and (size := _amount(waiting[0], counted)) <= room:
                room -= size
                own |= waiting.pop(0)
            # What is left over would be a tied embedding.
            if not own or room > (0 if counted else _MOST_PADDING):
                break
            stages.append(own)
        if waiting or len(stages) < self.files.stages:
            raise CheckpointError(
                f"{self.files.path(0, tensor_rank)} has no key param_shapes, and the sizes of the optimizer states do "
                "not tell which layers its pipeline stages have: set no_load_optim or finetune"
            )
        return stages

    def _groups_in_module_order(self, stage: int, tensor_rank: int, count: int) -> list[Shapes]:
        """What `param_shapes` would say: without ZeRO it is not kept, but the order of a state dict tells it."""
        shapes = {name: tuple(value.shape) for name, value in self.weights.all(tensor_rank).items()}
        if self.files.stages > 1:
            shapes = self._shapes_of_stages(shapes, tensor_rank)[stage]
        if count == 1:
            return [shapes]
        undecayed = {name for name in shapes if name.endswith(".bias") or _OF_A_NORM.search(name)}
        return [
            {name: shape for name, shape in shapes.items() if (name in undecayed) == group}
            for group in (False, True)
        ]


def _amount(shapes: Shapes, counted: bool) -> int:
    return len(shapes) if counted else sum(math.prod(shape) for shape in shapes.values())


def _size(optimizer: dict) -> tuple[int, bool]:
    """How much an optimizer state without ZeRO is of, and whether parameters are counted, or else values."""
    if "fp32_groups_flat" in optimizer:
        return sum(flat.numel() for flat in optimizer["fp32_groups_flat"]), False
    return sum(len(group["params"]) for group in optimizer.get("param_groups", [])), True


def _end_to_end(halves: list[Slot]) -> Slot:
    rows = sum(slot.shape[0] for slot in halves)
    pieces = [piece for slot in halves for piece in slot.pieces]
    return replace(halves[0], shape=(rows, *halves[0].shape[1:]), pieces=pieces)


def _named_shapes(param_shapes) -> list[Shapes]:
    """`param_shapes`, one dict per optimizer group, with logical names."""
    groups = param_shapes if isinstance(param_shapes, list) else []
    return [{native_name(name): tuple(shape) for name, shape in group.items()} for group in groups]


def _required(mapping: dict, key: str, path: Path):
    if key not in mapping:
        raise CheckpointError(f"{path} has no key {key}: it is not a checkpoint of GPT-NeoX")
    return mapping[key]


def _read_partitioned(partitions: list[dict], groups: list[Shapes], path: Path) -> dict[str, Slot]:
    """ZeRO 1 and 2, and the bf16 optimizer: each group is cut into equal parts over the data-parallel ranks."""
    if any(any(paddings) for paddings in partitions[0].get("param_alignment_paddings", [])):
        raise CheckpointError(
            f"{path} has parameters padded one by one (param_alignment_paddings), which is not read"
        )
    key = "single_partition_of_fp32_groups"
    flats, covers = [], []
    for number, shapes in enumerate(groups):
        states = [_group_state(part.get("base_optimizer_state"), number) for part in partitions]
        masters = [part[key][number] for part in partitions]
        flats.append([_by_kind(master, state) for master, state in zip(masters, states, strict=True)])
        covers.append(_covers([master.numel() for master in masters], states, shapes))
    return _flat_slots(flats, groups, path, covers)


def _read_flat(partitions: list[dict], groups: list[Shapes], path: Path) -> dict[str, Slot]:
    """16 bit without ZeRO: one flat tensor per group."""
    (state,) = partitions
    flats = [
        [_by_kind(master, _group_state(state.get("optimizer_state_dict"), number))]
        for number, master in enumerate(state["fp32_groups_flat"])
    ]
    return _flat_slots(flats, groups, path)


def _read_zero3(partitions: list[dict], groups: list[Shapes], path: Path) -> dict[str, Slot]:
    """ZeRO 3: each parameter is cut into equal parts, the last one padded; a rank's parts follow each other."""
    ranks = []
    for part in partitions:
        count = range(len(part["fp32_flat_groups"]))
        states = [_group_state(part.get("optimizer_state_dict"), number) for number in count]
        ranks.append(_join([_by_kind(part["fp32_flat_groups"][number], states[number]) for number in count]))
    slots, offset = {}, 0
    for name, shape in ((name, shape) for group in groups for name, shape in group.items()):
        size = math.prod(shape)
        part = math.ceil(size / len(ranks))
        cuts = [(flats, offset, offset + min(part, size - part * rank)) for rank, flats in enumerate(ranks)]
        slots[name] = Slot(shape, [cut for cut in cuts if cut[1] < cut[2]])
        offset += part
    return slots


def _read_plain(partitions: list[dict], groups: list[Shapes], path: Path) -> dict[str, Slot]:
    """fp32 without ZeRO: states by parameter, and no copy of the weights."""
    (optimizer,) = partitions
    slots = {}
    for group, shapes in zip(optimizer["param_groups"], groups, strict=True):
        if len(group["params"]) != len(shapes):
            raise _misfit(path, len(group["params"]), len(shapes), "parameters")
        for number, (name, shape) in zip(group["params"], shapes.items(), strict=True):
            state, size = optimizer["state"].get(number, {}), math.prod(shape)
            flats = {kind: Flat([value]) for kind, value in state.items() if _by_value(kind, value, size)}
            covers = {kind: value for kind, value in state.items() if kind.startswith(COVER)}
            steps = int(state["step"]) if "step" in state else None
            slots[name] = Slot(shape, [(flats, 0, size)], covers, steps)
    return slots


# By the key that tells how an optimizer state is laid out.
_READERS = {
    "single_partition_of_fp32_groups": _read_partitioned,
    "fp32_groups_flat": _read_flat,
    "fp32_flat_groups": _read_zero3,
    "state": _read_plain,
}


def _flat_slots(
    flats: list[list[dict[str, torch.Tensor]]],
    groups: list[Shapes],
    path: Path,
    covers: list[dict[str, dict[str, torch.Tensor]]] | None = None,
) -> dict[str, Slot]:
    """Slots of parameters that lie end to end.

    flats: per group and data-parallel rank, tensors by kind; covers: per group, {name: {kind: vector}}.
    """
    slots: dict[str, Slot] = {}
    for ranks, shapes, vectors in zip(flats, groups, covers or [{}] * len(groups), strict=True):
        joined, offset = _join(ranks), 0
        wanted = sum(math.prod(shape) for shape in shapes.values())
        short = min((flat.size for flat in joined.values()), default=0)
        if short < wanted:
            raise _misfit(path, short, wanted, "values")
        for name, shape in shapes.items():
            piece = (joined, offset, offset + math.prod(shape))
            slots.setdefault(name, Slot(shape, [piece], vectors.get(name, {})))
            offset += math.prod(shape)
    return slots


def _covers(sizes: list[int], states: list[dict], shapes: Shapes) -> dict[str, dict[str, torch.Tensor]]:
    """{name: {kind: vector}} of a group cut into partitions of `sizes` values, whose states hold the vectors of the
    parameters they have values of, and of those that several partitions have values of, end to end."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for state, names in zip(states, covered(sizes, shapes), strict=True):
        used: dict[str, int] = {}
        if not any(key.startswith(COVER) for key in state):
            continue
        for name in names:
            for dim, length in enumerate(shapes[name] or (1,)):
                kind, first = f"{COVER}{dim}", used.get(f"{COVER}{dim}", 0)
                found.setdefault(name, {}).setdefault(kind, state[kind][first : first + length])
                used[kind] = first + length
    return found


def covered(sizes: list[int], shapes: Shapes) -> Iterator[list[str]]:
    """For each partition of `sizes` values the names of the parameters that it has vectors of."""
    ends = list(itertools.accumulate(sizes))
    bounds = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    for begin, end in bounds:
        yield [
            name
            for name, start, stop in ranges(shapes)
            if begin < stop and start < end or not any(low <= start and stop <= high for low, high in bounds)
        ]


def ranges(shapes: Shapes) -> Iterator[tuple[str, int, int]]:
    """(name, start, stop) of parameters that lie end to end."""
    start = 0
    for name, shape in shapes.items():
        yield name, start, start + math.prod(shape)
        start += math.prod(shape)


def _misfit(path: Path, found: int, wanted: int, what: str) -> CheckpointError:
    return CheckpointError(f"{path} has optimizer states of {found} {what} where its model has {wanted}")


def _join(ranks: list[dict[str, torch.Tensor]]) -> dict[str, Flat]:
    return {kind: Flat([tensors[kind] for tensors in ranks]) for kind in ranks[0]}


def _by_kind(master: torch.Tensor, state: dict) -> dict[str, torch.Tensor]:
    """The fp32 copy and the tensors of the optimizer that go with it value by value."""
    return {MASTER: master} | {
        kind: value for kind, value in state.items() if _by_value(kind, value, master.numel())
    }


def _by_value(kind: str, value, size: int) -> bool:
    # The copy is kept without its padding, the optimizer's tensors with it.
    whole = isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() >= size
    return whole and not kind.startswith(COVER)


def _group_state(base, number: int) -> dict:
    """The state of a group: `base` is an optimizer's state dict, or a list with one state per group (elastic)."""
    if isinstance(base, dict):
        return base.get("state", {}).get(number, {})
    return base[number] if base else {}


def _steps(state: dict) -> int | None:
    """Steps the optimizer has taken; fused Adam counts per group, torch's per parameter, elastic ZeRO for all."""
    base = next(
        (state[key] for key in ("base_optimizer_state", "optimizer_state_dict") if key in state), state
    )
    if "base_optimizer_state_step" in state:
        return int(state["base_optimizer_state_step"])
    if isinstance(base, dict):
        places = [*base.get("state", {}).values(), *base.get("param_groups", [])]
    else:
        places = base or []
    counts = [int(place["step"]) for place in places if "step" in place]
    return max(counts) if counts else None


def _scaler(state: dict) -> dict:
    """Running values of a dynamic loss scaler, kept as an object (ZeRO) or as entries (without)."""
    if not state.get("dynamic_loss_scale", True):
        return {}
    held = vars(state["loss_scaler"]) if "loss_scaler" in state else state
    return {name: held[name] for name in _SCALER if name in held}

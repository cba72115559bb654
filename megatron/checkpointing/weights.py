"""Weights out of a checkpoint tree, by logical name, for a model in any tensor and pipeline layout.

Three kinds of tree (DeepSpeed 0.19.8): one file per layer and tensor rank (pipelines), one state dict per tensor rank
(plain models), and flat fp32 partitions per data-parallel rank (ZeRO-3).

What GPT-NeoX wrote itself (there is no manifest then) differs in two points. Its replicas of a parameter on the tensor
ranks need not be equal to the last bit: the first one is taken. And with a parallel residual every tensor rank added
its own bias to its part of a branch, so that the biases of the two row-parallel layers are summands.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from megatron import mpu
from megatron.checkpointing.checks import check_model_args
from megatron.checkpointing.choose import choose_checkpoint
from megatron.checkpointing.manifest import is_foreign, read_manifest
from megatron.checkpointing.model_files import first_state, saved_iteration, state_of_this_rank
from megatron.checkpointing.names import iteration_of_tag
from megatron.checkpointing.position import samples_before
from megatron.checkpointing.rng import restore_rng
from megatron.checkpointing.safe_engine import load_file
from megatron.checkpointing.saved_config import check_saved_config
from megatron.common.console import print_rank_0
from megatron.common.errors import CheckpointError
from megatron.mpu import ParameterSpec, local_slice, merge_slices

_LAYER_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_PLAIN_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ZERO3_FILE = re.compile(r"zero_pp_rank_0_mp_rank_(\d+)_model_states\.pt")

# Names of GPT-NeoX's earlier versions (the published 20B and Pythia checkpoints) -> today's.
_RENAMED = (
    ("mlp.dense_h_to_4h.", "mlp.linear1."),
    ("mlp.dense_4h_to_h.", "mlp.linear2."),
    ("mlp.w2.", "mlp.linear2."),
    # DeepSpeed's name for an embedding that the output shares.
    ("tied_modules.embed.", "0."),
)
# Halves of a gated MLP's first matrix that earlier versions kept apart for LLaMA: (multiplied, activated) -> joined.
HALVES = (("mlp.w3.weight", "mlp.w1.weight"), "mlp.linear1.weight")
# Tables and masks that are computed, not learned.
_COMPUTED = (
    "rotary_emb.inv_freq",
    "position_embeddings.inv_freq",
    "alibi_embed.slopes",
    "attention.bias",
    "attention.masked_bias",
)
_ROW_BIASES = ("attention.dense.bias", "mlp.linear2.bias")


def native_name(key: str) -> str:
    """The logical name of a state dict key: `sequential.2.mlp.dense_h_to_4h.bias` -> `2.mlp.linear1.bias`."""
    name = key.removeprefix("module.").removeprefix("sequential.")
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name


def _is_weight(name: str) -> bool:
    return not name.endswith((*_COMPUTED, "_extra_state"))


class SavedWeights:
    """The weights of one checkpoint, read layer by layer where its files allow it.

    Attributes: tensor_size: tensor-parallel degree it was saved with; foreign: whether GPT-NeoX wrote it; partitioned:
    whether ZeRO-3 has cut them, so that only whole tensor ranks can be read.
    Raises: CheckpointError when the folder holds no model weights.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.foreign = is_foreign(directory)
        self._states: dict[
            int, dict[str, torch.Tensor]
        ] = {}  # of whole tensor ranks, where files are not by layer
        for pattern, reader in (
            (_LAYER_FILE, self._from_layer),
            (_ZERO3_FILE, self._from_zero3),
            (_PLAIN_FILE, self._from_plain),
        ):
            found = [
                match for path in sorted(self.directory.iterdir()) if (match := pattern.fullmatch(path.name))
            ]
            if found:
                self._read, self.partitioned = reader, reader == self._from_zero3
                self.tensor_size = 1 + max(int(match.groups()[-1]) for match in found)
                return
        raise CheckpointError(f"{self.directory} holds no model weights (no *model_states.pt files)")

    def layer(self, index: int, tensor_rank: int) -> dict[str, torch.Tensor]:
        """{path within the layer: part of a tensor rank}; empty if the layer has no weights."""
        return self._read(index, tensor_rank)

    def part(self, name: str, tensor_rank: int) -> torch.Tensor:
        """A tensor rank's part of a weight by its logical name. Raises: CheckpointError if there is none."""
        index, path = name.split(".", 1)
        layer = self.layer(int(index), tensor_rank)
        if path not in layer:
            raise CheckpointError(f"{self.directory} has no {name}: the config describes another model")
        return layer[path]

    def all(self, tensor_rank: int) -> dict[str, torch.Tensor]:
        """{logical name: part of a tensor rank} in the order of the model's modules."""
        if self._read != self._from_layer:
            self._read(0, tensor_rank)
            return self._states[tensor_rank]
        matches = (_LAYER_FILE.fullmatch(path.name) for path in self.directory.iterdir())
        indices = sorted({int(match[1]) for match in matches if match})
        return {
            f"{index}.{path}": value
            for index in indices
            for path, value in self.layer(index, tensor_rank).items()
        }

    def _from_layer(self, index: int, tensor_rank: int) -> dict[str, torch.Tensor]:
        path = self.directory / f"layer_{index:02d}-model_{tensor_rank:02d}-model_states.pt"
        return _weights(load_file(path, mmap=True)) if path.is_file() else {}

    def _from_plain(self, index: int, tensor_rank: int) -> dict[str, torch.Tensor]:
        if tensor_rank not in self._states:
            self._states[tensor_rank] = self._plain_states(tensor_rank)
        return _of_layer(self._states[tensor_rank], index)

    def _plain_states(self, tensor_rank: int) -> dict[str, torch.Tensor]:
        path = self.directory / f"mp_rank_{tensor_rank:02d}_model_states.pt"
        module = load_file(path, mmap=True).get("module")
        if not isinstance(module, dict):
            raise CheckpointError(f"{path} has no model in it, and there are no layer files beside it")
        return _weights(module)

    def _from_zero3(self, index: int, tensor_rank: int) -> dict[str, torch.Tensor]:
        if tensor_rank not in self._states:
            self._states[tensor_rank] = self._zero3_states(tensor_rank)
        return _of_layer(self._states[tensor_rank], index)

    def _zero3_states(self, tensor_rank: int) -> dict[str, torch.Tensor]:
        """Whole fp32 tensors of a tensor rank, put together from the partitions of all data-parallel ranks."""
        suffix = f"mp_rank_{tensor_rank:02d}"
        shapes = load_file(self.directory / f"zero_pp_rank_0_{suffix}_model_states.pt")["param_shapes"]
        partitions = sorted(
            self.directory.glob(f"*zero_pp_rank_*_{suffix}_optim_states.pt"),
            key=_data_rank,
        )
        if not partitions:
            raise CheckpointError(
                f"{self.directory} has no *_optim_states.pt files, which hold the weights of ZeRO-3"
            )
        flat = []
        for path in partitions:
            groups = load_file(path)["optimizer_state_dict"]["fp32_flat_groups"]
            flat.append(torch.cat([group.flatten() for group in groups]))
        named_shapes = {name: shape for group in shapes for name, shape in group.items()}
        return _weights(unflatten(flat, named_shapes) | self._frozen_states(suffix))

    def _frozen_states(self, suffix: str) -> dict[str, torch.Tensor]:
        """Whole tensors of what was not trained, which no optimizer state holds."""
        paths = sorted(self.directory.glob(f"zero_pp_rank_*_{suffix}_model_states.pt"), key=_data_rank)
        states = [load_file(path) for path in paths]
        return {
            name: torch.cat([state["frozen_param_fragments"][name].flatten() for state in states])[
                : math.prod(shape)
            ].view(*shape)
            for name, shape in (states[0].get("frozen_param_shapes") or {}).items()
        }


def _data_rank(path: Path) -> int:
    """The data-parallel rank that wrote a file of ZeRO."""
    return int(re.findall(r"zero_pp_rank_(\d+)_", path.name)[0])


def unflatten(partitions: list[torch.Tensor], shapes: dict[str, Iterable[int]]) -> dict[str, torch.Tensor]:
    """ZeRO-3: every tensor is cut into equal parts, the last one padded; each rank's parts follow each other."""
    tensors, offset = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        part = math.ceil(count / len(partitions))
        whole = torch.cat([partition[offset : offset + part] for partition in partitions])
        tensors[name] = whole[:count].view(*shape)
        offset += part
    return tensors


def _weights(state: dict) -> dict[str, torch.Tensor]:
    named = ((native_name(key), value) for key, value in state.items())
    weights = {name: value for name, value in named if _is_weight(name) and isinstance(value, torch.Tensor)}
    return join_halves(weights, torch.cat)


def join_halves(named: dict, join: Callable[[list], Any]) -> dict:
    """Put what belongs to two halves of a matrix together, in the place of the first one."""
    (first, second), whole = HALVES
    joined = {}
    for name, value in named.items():
        prefix = name.removesuffix(second).removesuffix(first)
        if name != prefix and {prefix + first, prefix + second} <= named.keys():
            joined.setdefault(prefix + whole, join([named[prefix + first], named[prefix + second]]))
        else:
            joined[name] = value
    return joined


def _of_layer(state: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    prefix = f"{index}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_for_inference(neox_args, module: torch.nn.Module, iteration: int | None = None) -> int:
    """Fill a bare model with the weights of a checkpoint in `load`; collective over all ranks.

    The layout that wrote it (tensor and pipeline ranks, replicas, ZeRO stage) may be another one.

    Args:
        module: a SequentialWrapper or GPT2ModelPipe.
        iteration: the checkpoint to load; None takes the newest one that is complete and undamaged.
    Returns: the iteration it was saved at.
    Raises: CheckpointError when there is none, or it is damaged or of another model.
    """
    directory = load_weights_only(neox_args, module, iteration)
    if directory is None:
        raise CheckpointError(f"load: there is no checkpoint in {neox_args.load}")
    return _iteration_of(directory)


def load_weights_only(neox_args, module: torch.nn.Module, iteration: int | None = None) -> Path | None:
    """load_for_inference for a run that may also start afresh.

    Returns: the checkpoint's folder, None if there is none.
    """
    tag = choose_checkpoint(neox_args, iteration)
    if tag is None:
        return None
    directory = Path(neox_args.load, tag)
    check_model_args(neox_args, _description(directory).get("args", {}))
    check_saved_config(neox_args, directory, resumes=False)
    load_weights(module, directory, neox_args.tokenizer.vocab_size, neox_args.gpt_j_residual)
    print_rank_0(f"loaded the weights of {directory}")
    return directory


def warm_start(neox_args, module: torch.nn.Module, iteration: int | None = None) -> tuple[int, int] | None:
    """Start training from the weights of a checkpoint, without its optimizer, before the engine is built.

    `finetune` starts counting at 0; `no_load_optim` goes on from the checkpoint's iteration and random states.
    Returns: the iteration to start at, and the samples that lie behind it; None if there was nothing to load.
    """
    directory = load_weights_only(neox_args, module, iteration)
    if directory is None:
        return None
    if neox_args.finetune:
        return 0, 0
    saved = SavedWeights(directory)
    restore_rng(
        neox_args, directory, state_of_this_rank(directory, saved.tensor_size) if saved.foreign else {}
    )
    iteration = _iteration_of(directory)
    return iteration, samples_before(neox_args, directory, first_state(directory), iteration)


def _description(directory: Path) -> dict:
    """What a checkpoint says about its model: the manifest, or what GPT-NeoX wrote beside the weights."""
    return read_manifest(directory) or first_state(directory)


def _iteration_of(directory: Path) -> int:
    description = _description(directory)
    # Layer files by themselves, as converters write them, are the start of something new.
    return saved_iteration(description, directory) if description else iteration_of_tag(directory.name) or 0


def load_weights(
    module: torch.nn.Module, directory: str | Path, vocabulary: int, parallel_residual: bool = False
) -> None:
    """Fill a model's parameters from a checkpoint that may have been saved in another layout.

    Args:
        module: has logical_named_parameters(); every parameter has a `spec`; ZeRO-3 may have partitioned them.
        vocabulary: size of the true vocabulary; rows beyond it are padding, whose number depends on the layout.
        parallel_residual: whether the model's blocks add attention and MLP to the same input.
    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    saved = SavedWeights(directory)
    wanted: dict[int, dict[str, torch.nn.Parameter]] = {}
    for name, parameter in module.placed_named_parameters():
        index, path = name.split(".", 1)
        wanted.setdefault(int(index), {})[path] = parameter
    filled: set[int] = set()
    for index, parameters in wanted.items():
        with whole(parameters.values()):
            _fill_layer(saved, index, parameters, filled, vocabulary, parallel_residual)


def whole(parameters: Iterable[torch.nn.Parameter]):
    """Within the block, parameters that ZeRO-3 has partitioned can be read and written as a whole."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    return GatheredParameters(partitioned, modifier_rank=0) if partitioned else contextlib.nullcontext()


def _fill_layer(
    saved: SavedWeights,
    index: int,
    parameters: dict,
    filled: set[int],
    vocabulary: int,
    parallel_residual: bool,
) -> None:
    """filled: ids of the parameters that an earlier layer shares and has filled; these join them."""
    names = _names_of_layer(saved, index, parameters, filled)
    for path, parameter in parameters.items():
        if id(parameter) in filled or path not in names:
            continue
        filled.add(id(parameter))
        own = local_part(
            lambda rank, path=path: saved.layer(index, rank)[path],
            parameter.spec,
            saved,
            vocabulary,
            summands=is_summand(path, parallel_residual),
        )
        if own.shape != parameter.shape:
            raise CheckpointError(
                f"{index}.{path} is {tuple(own.shape)} in the checkpoint in {saved.directory} and "
                f"{tuple(parameter.shape)} in the model: the config describes another model"
            )
        with torch.no_grad():
            parameter.copy_(own)
    for path, parameter in parameters.items():
        if path not in names and getattr(parameter, "start", None) is not None:
            # A new prompt for the model of this checkpoint.
            parameter.start()


def _names_of_layer(saved: SavedWeights, index: int, parameters: dict, filled: set[int]) -> set[str]:
    """What the checkpoint has of a layer. Raises: CheckpointError if that is less or more than the model asks for."""
    same_layout = saved.tensor_size == mpu.get_model_parallel_world_size()
    names = set(saved.layer(index, mpu.get_model_parallel_rank() if same_layout else 0))
    missing = sorted(
        path
        for path, parameter in parameters.items()
        if path not in names and id(parameter) not in filled and not hasattr(parameter, "start")
    )
    # The embedding of an output that shares its weights lacks the position table.
    unknown = sorted(names - set(parameters)) if index > 0 else []
    if missing or unknown:
        listed = [*(f"no {name}" for name in missing), *(f"an unknown {name}" for name in unknown)]
        raise CheckpointError(
            f"layer {index} of the checkpoint in {saved.directory} has " + ", ".join(listed)
        )
    return names


def local_part(
    read: Callable[[int], torch.Tensor],
    spec: ParameterSpec,
    saved: SavedWeights,
    vocabulary: int,
    summands: bool = False,
) -> torch.Tensor:
    """This rank's part of a parameter, or of what belongs to it value by value, from the parts of a checkpoint.

    Args: read: gives the part of a tensor rank; summands: GPT-NeoX kept a bias that is the sum of its ranks' biases.
    """
    size, rank = mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
    # In the layout of the checkpoint a rank reads its own part only.
    replica = spec.shard_dim is None and saved.foreign
    own = read(rank) if saved.tensor_size == size and not replica else None
    if own is not None and (not spec.vocabulary or own.shape == spec.local_shape(size)):
        return own

    def each(source: int) -> torch.Tensor:
        return own if own is not None and source == rank else read(source)

    return local_slice(logical_value(each, spec, saved, vocabulary, summands), spec, rank, size)


def logical_value(
    read: Callable[[int], torch.Tensor],
    spec: ParameterSpec,
    saved: SavedWeights,
    vocabulary: int,
    summands: bool = False,
) -> torch.Tensor:
    """The whole of what local_part gives a part of."""
    if spec.shard_dim is None:
        parts = [read(part) for part in range(saved.tensor_size if summands and saved.foreign else 1)]
        return torch.stack([part.float() for part in parts]).sum(0) if len(parts) > 1 else parts[0]
    return _merged([read(part) for part in range(saved.tensor_size)], spec, vocabulary)


def is_summand(name: str, parallel_residual: bool) -> bool:
    """Whether GPT-NeoX's tensor ranks each add their own replica of a parameter, so that their sum is what counts."""
    return parallel_residual and name.endswith(_ROW_BIASES)


def _merged(parts: list[torch.Tensor], spec: ParameterSpec, vocabulary: int) -> torch.Tensor:
    """The whole tensor; vocabulary rows are cut or filled up with zeros to the padding of the present layout."""
    if len(parts) > 1 and not spec.blocks:
        whole = torch.cat(parts, spec.shard_dim)
    else:
        whole = merge_slices(parts, spec)
    rows = spec.logical_shape[0]
    if spec.vocabulary and whole.shape[0] != rows and min(whole.shape[0], rows) >= vocabulary:
        padding = whole.new_zeros(max(0, rows - whole.shape[0]), *whole.shape[1:])
        whole = torch.cat([whole[:rows], padding])
    return whole

"""Weights out of a checkpoint tree, by logical name, for a model in any tensor and pipeline layout.

Three kinds of tree (DeepSpeed 0.19.8): one file per layer and tensor rank (pipelines), one state dict per tensor rank
(plain models), and flat fp32 partitions per data-parallel rank (ZeRO-3).
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from megatron import mpu
from megatron.checkpointing.checks import check_checkpoint_args
from megatron.checkpointing.choose import choose_checkpoint
from megatron.checkpointing.manifest import read_manifest
from megatron.checkpointing.names import iteration_of_tag
from megatron.checkpointing.rng import restore_rng
from megatron.checkpointing.safe_engine import load_file
from megatron.common.console import print_rank_0
from megatron.common.errors import CheckpointError
from megatron.mpu import ParameterSpec, local_slice, merge_slices

_LAYER_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_PLAIN_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ZERO3_FILE = re.compile(r"zero_pp_rank_0_mp_rank_(\d+)_model_states\.pt")

# Names of GPT-NeoX's earlier versions (the published 20B and Pythia checkpoints) -> today's.
_RENAMED = (("mlp.dense_h_to_4h.", "mlp.linear1."), ("mlp.dense_4h_to_h.", "mlp.linear2."))
# Tables and masks that are computed, not learned.
_COMPUTED = ("rotary_emb.inv_freq", "position_embeddings.inv_freq", "attention.bias", "attention.masked_bias")
# What a checkpoint says about its layout, in which weights are not bound.
_OF_THE_LAYOUT = ("model_parallel_size", "padded_vocab_size")


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

    Attributes: tensor_size: tensor-parallel degree it was saved with.
    Raises: CheckpointError when the folder holds no model weights.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
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
                self._read = reader
                self.tensor_size = 1 + max(int(match.groups()[-1]) for match in found)
                return
        raise CheckpointError(f"{self.directory} holds no model weights (no *model_states.pt files)")

    def layer(self, index: int, tensor_rank: int) -> dict[str, torch.Tensor]:
        """{path within the layer: part of a tensor rank}; empty if the layer has no weights."""
        return self._read(index, tensor_rank)

    def _from_layer(self, index: int, tensor_rank: int) -> dict[str, torch.Tensor]:
        path = self.directory / f"layer_{index:02d}-model_{tensor_rank:02d}-model_states.pt"
        return _weights(load_file(path)) if path.is_file() else {}

    def _from_plain(self, index: int, tensor_rank: int) -> dict[str, torch.Tensor]:
        if tensor_rank not in self._states:
            self._states[tensor_rank] = self._plain_states(tensor_rank)
        return _of_layer(self._states[tensor_rank], index)

    def _plain_states(self, tensor_rank: int) -> dict[str, torch.Tensor]:
        path = self.directory / f"mp_rank_{tensor_rank:02d}_model_states.pt"
        module = load_file(path).get("module")
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
            key=lambda path: int(re.findall(r"zero_pp_rank_(\d+)_", path.name)[0]),
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
        return _weights(unflatten(flat, named_shapes))


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
    return {name: value for name, value in named if _is_weight(name) and isinstance(value, torch.Tensor)}


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
    saved = (read_manifest(directory) or {}).get("args", {})
    check_checkpoint_args(neox_args, {name: saved[name] for name in saved if name not in _OF_THE_LAYOUT})
    load_weights(module, directory, neox_args.tokenizer.vocab_size)
    print_rank_0(f"loaded the weights of {directory}")
    return directory


def warm_start(neox_args, module: torch.nn.Module, iteration: int | None = None) -> int | None:
    """Start training from the weights of a checkpoint, without its optimizer, before the engine is built.

    `finetune` starts counting at 0; `no_load_optim` goes on from the checkpoint's iteration and random states.
    Returns: the iteration to start at, None if there was nothing to load.
    """
    directory = load_weights_only(neox_args, module, iteration)
    if directory is None:
        return None
    if neox_args.finetune:
        return 0
    restore_rng(neox_args, directory, {})
    return _iteration_of(directory)


def _iteration_of(directory: Path) -> int:
    description = read_manifest(directory) or {}
    return description.get("iteration", iteration_of_tag(directory.name) or 0)


def load_weights(module: torch.nn.Module, directory: str | Path, vocabulary: int) -> None:
    """Fill a model's parameters from a checkpoint that may have been saved in another layout.

    Args:
        module: has logical_named_parameters(); every parameter has a `spec`.
        vocabulary: size of the true vocabulary; rows beyond it are padding, whose number depends on the layout.
    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    saved = SavedWeights(directory)
    wanted: dict[int, dict[str, torch.nn.Parameter]] = {}
    for name, parameter in module.logical_named_parameters():
        index, path = name.split(".", 1)
        wanted.setdefault(int(index), {})[path] = parameter
    for index, parameters in wanted.items():
        _fill_layer(saved, index, parameters, vocabulary)


def _fill_layer(saved: SavedWeights, index: int, parameters: dict, vocabulary: int) -> None:
    size, rank = mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
    same_layout = saved.tensor_size == size
    # In the layout of the checkpoint a rank reads its own part only.
    layers = [saved.layer(index, part) for part in ([rank] if same_layout else range(saved.tensor_size))]
    missing = sorted(set(parameters) - set(layers[0]))
    # The embedding of an output that shares its weights lacks the position table.
    unknown = sorted(set(layers[0]) - set(parameters)) if index > 0 else []
    if missing or unknown:
        listed = [*(f"no {name}" for name in missing), *(f"an unknown {name}" for name in unknown)]
        raise CheckpointError(
            f"layer {index} of the checkpoint in {saved.directory} has " + ", ".join(listed)
        )
    for path, parameter in parameters.items():
        parts = [layer[path] for layer in layers]
        if same_layout:
            own = parts[0]
        else:
            own = local_slice(_logical(parts, parameter.spec, vocabulary), parameter.spec, rank, size)
        if own.shape != parameter.shape:
            raise CheckpointError(
                f"{index}.{path} is {tuple(own.shape)} in the checkpoint in {saved.directory} and "
                f"{tuple(parameter.shape)} in the model: the config describes another model"
            )
        with torch.no_grad():
            parameter.copy_(own)


def _logical(parts: list[torch.Tensor], spec: ParameterSpec, vocabulary: int) -> torch.Tensor:
    """The whole tensor; vocabulary rows are cut or filled up with zeros to the padding of the present layout."""
    if spec.shard_dim is not None and not spec.blocks:
        whole = torch.cat(parts, spec.shard_dim)
    else:
        whole = merge_slices(parts, spec)
    rows = spec.logical_shape[0]
    if spec.shard_dim == 0 and whole.shape[0] != rows and min(whole.shape[0], rows) >= vocabulary:
        padding = whole.new_zeros(max(0, rows - whole.shape[0]), *whole.shape[1:])
        whole = torch.cat([whole[:rows], padding])
    return whole

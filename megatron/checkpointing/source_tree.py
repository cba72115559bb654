"""A checkpoint of any layout as whole tensors, fetched one by one, and cut for another layout."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from megatron.checkpointing.by_name import cover_spec
from megatron.checkpointing.manifest import read_manifest
from megatron.checkpointing.model_files import ModelFiles
from megatron.checkpointing.parameter_table import PARAMETERS
from megatron.checkpointing.saved_optimizer import COVER, MASTER, SavedOptimizer, Slot
from megatron.checkpointing.weights import SavedWeights, is_summand, logical_value
from megatron.common.errors import CheckpointError
from megatron.mpu import ParameterSpec, local_slice
from megatron.mpu.parameters import zeros_

WEIGHT = "weight"


class SourceTree:
    """What a checkpoint holds.

    Args:
        specs: of all parameters, for a checkpoint that does not describe its own.
        tensor_size: tensor ranks that vocabularies are padded for.
        parallel_residual: see weights.is_summand.
    Attributes: specs: {logical name: spec} in the order of the layers, vocabularies padded; rows: of the vocabulary
    that belong to the model; state: what the first model rank's file keeps; args: checked settings of the model.
    Raises: CheckpointError if it cannot be read, or nothing describes its parameters.
    """

    def __init__(
        self,
        directory: Path,
        tensor_size: int,
        specs: Mapping[str, ParameterSpec] | None = None,
        parallel_residual: bool = False,
    ):
        self.directory, self.tensor_size, self.parallel_residual = directory, tensor_size, parallel_residual
        self.description = read_manifest(directory) or {}
        self.reopen()
        described = dict(specs) if specs is not None else self._described()
        self.args = self.state.get("args") or self.description.get("args", {})
        divisor = int(self.args.get("make_vocab_size_divisible_by", 1)) * tensor_size
        found = [spec.logical_shape[0] for spec in described.values() if spec.vocabulary]
        self.rows = int(self.description.get("vocabulary") or max(found, default=0))
        padded = math.ceil(self.rows / divisor) * divisor
        self.specs = {
            name: replace(spec, logical_shape=(padded, *spec.logical_shape[1:])) if spec.vocabulary else spec
            for name, spec in sorted(described.items(), key=lambda item: int(item[0].split(".")[0]))
        }

    def reopen(self) -> None:
        """Give back the memory of everything that has been read."""
        self.weights = SavedWeights(self.directory)
        self.files = ModelFiles(self.directory, self.weights.tensor_size)
        self.optimizer = SavedOptimizer(self.weights, self.files)
        self.state = self.files.state(0, 0)

    def _described(self) -> dict[str, ParameterSpec]:
        """Specs as the files describe them; a layer that shares the parameters of another has specs of its own."""
        specs: dict[str, ParameterSpec] = {}
        for stage in range(self.files.stages):
            for name, entry in self.files.state(stage, 0).get(PARAMETERS, {}).items():
                if name[0].isdigit():
                    specs.setdefault(name, _spec(entry))
        if not specs:
            raise CheckpointError(
                f"{self.directory} does not describe its parameters (it was not written by this version): name the "
                "config of its model with --config"
            )
        if self.weights.partitioned:
            return specs
        by_path = {name.split(".", 1)[1]: spec for name, spec in specs.items()}
        return {name: specs.get(name, by_path.get(name.split(".", 1)[1])) for name in self.weights.all(0)}

    def groups(self) -> list[list[str]]:
        """Names of the trained parameters, by optimizer group, each once."""
        groups: list[list[str]] = []
        seen: set[str] = set()
        for stage in range(self.files.stages):
            for number, names in enumerate(self.optimizer.stage(stage, 0).groups):
                if number == len(groups):
                    groups.append([])
                new = [name for name in names if name in self.specs and name not in seen]
                groups[number] += new
                seen.update(new)
        return groups

    def slot(self, name: str) -> Slot:
        return self.optimizer.slot(name, 0)

    def part(self, name: str, kind: str, rank: int) -> torch.Tensor:
        """A tensor rank's part, in the new layout, of a weight (WEIGHT), an fp32 copy (MASTER) or a state."""
        spec = self.specs[name]
        if kind.startswith(COVER):
            spec = cover_spec(spec, int(kind.removeprefix(COVER)))
        logical = logical_value(
            lambda source: self._read(name, kind, source),
            spec,
            self.weights,
            self.rows,
            summands=kind in (WEIGHT, MASTER) and is_summand(name, self.parallel_residual),
        )
        return local_slice(logical, spec, rank, self.tensor_size)

    def weight(self, name: str, dtype: torch.dtype, rank: int, trained: bool) -> torch.Tensor:
        """A weight in `dtype`, as exact as the checkpoint has it. trained: the optimizer may have an fp32 copy."""
        exact = trained and MASTER in self.slot(name).kinds()
        if exact and (self.weights.partitioned or dtype == torch.float32):
            return self.part(name, MASTER, rank).to(dtype)
        stored = self.part(name, WEIGHT, rank)
        if exact and stored.dtype != dtype:
            stored = self.part(name, MASTER, rank)
        return stored.to(dtype)

    def _read(self, name: str, kind: str, rank: int) -> torch.Tensor:
        if kind == WEIGHT:
            return self.weights.part(name, rank)
        if kind.startswith(COVER):
            return self.optimizer.slot(name, rank).covers[kind]
        return self.optimizer.value(name, kind, rank)


def _spec(entry: dict) -> ParameterSpec:
    return ParameterSpec(
        tuple(entry["logical_shape"]),
        zeros_,
        entry["shard_dim"],
        tuple(entry["blocks"]),
        vocabulary=entry["vocabulary"],
    )

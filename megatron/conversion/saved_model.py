"""The whole parameters of a checkpoint in any layout."""

import functools
from pathlib import Path

import torch

from megatron import mpu
from megatron.checkpointing import manifest
from megatron.checkpointing.weights import SavedWeights, is_summand, local_part
from megatron.common.errors import CheckpointError
from megatron.conversion.native_tree import VOCABULARY
from megatron.conversion.specs import parameter_specs
from megatron.neox_arguments import NeoXArgs


def open_checkpoint(directory: str | Path) -> SavedWeights:
    """The weights of a checkpoint's folder.

    Raises: CheckpointError if there are none, or what its manifest says does not hold.
    """
    problem = manifest.problem(Path(directory))
    if problem is not None:
        raise CheckpointError(f"{directory} cannot be used: {problem}")
    return SavedWeights(directory)


class SavedModel:
    """Parameters by logical name, each put together when it is asked for.

    Args: args: config of the model; rows: of its vocabulary, beyond which there is padding only.
    Attributes: specs: {logical name: spec} of the model in one process.
    """

    def __init__(self, saved: SavedWeights, args: NeoXArgs, rows: int):
        self.specs = parameter_specs(args, rows)
        self._saved, self._rows, self._parallel = saved, rows, args.gpt_j_residual

    def whole(self, name: str) -> torch.Tensor:
        """Raises: CheckpointError if there is none, or one of another shape."""
        where, spec = self._saved.directory, self.specs[name]
        read = functools.partial(self._saved.part, name)
        with mpu.use(mpu.ParallelState()):
            value = local_part(read, spec, self._saved, self._rows, is_summand(name, self._parallel))
        if name.endswith(VOCABULARY):
            value = value[: self._rows]
        if tuple(value.shape) != tuple(spec.logical_shape):
            raise CheckpointError(
                f"{name} in {where} is {tuple(value.shape)}, but the config describes {tuple(spec.logical_shape)}"
            )
        return value

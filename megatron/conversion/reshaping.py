"""What the tools for reshaping have to know about a checkpoint."""

from dataclasses import fields
from pathlib import Path

import torch

from megatron.checkpointing.manifest import is_foreign, read_manifest
from megatron.checkpointing.model_files import first_state, model_rank_files
from megatron.checkpointing.names import (
    WEIGHT_FILES,
    get_checkpoint_tag,
    iteration_of_tag,
    read_latest,
    saved_iterations,
)
from megatron.checkpointing.parameter_table import PARAMETERS
from megatron.checkpointing.saved_config import read_saved_config
from megatron.checkpointing.target_tree import DTYPES, Layout
from megatron.checkpointing.weights import SavedWeights
from megatron.common.errors import CheckpointError
from megatron.conversion.specs import model_config, parameter_specs
from megatron.mpu import ParameterSpec
from megatron.neox_arguments.loading import read_files
from megatron.neox_arguments.neox_args import NeoXArgsModel, NeoXArgsMoE

# Keys that a run may have to change with its precision, which any model can have.
_OF_PRECISION = {"precision", "fp16_lm_cross_entropy"}


def find_checkpoint(folder: str | Path, iteration: int | None = None) -> Path:
    """A checkpoint by its own path, or of a folder of checkpoints the one that is asked for or that `latest` names.

    Raises: CheckpointError if there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder of a checkpoint (global_stepN), or of several")
    if iteration is None and (iteration_of_tag(folder.name) is not None or any(folder.glob(WEIGHT_FILES))):
        return folder
    tag = read_latest(folder) if iteration is None else get_checkpoint_tag(iteration)
    if not tag or not (folder / tag).is_dir():
        wanted = "file `latest` that names a checkpoint" if iteration is None else f"checkpoint {tag}"
        listed = ", ".join(map(str, saved_iterations(folder))) or "none"
        raise CheckpointError(f"{folder} has no {wanted}; iterations that are there: {listed}")
    return folder / tag


def check_layout(directory: Path, configs: list[str], layout: Layout) -> None:
    """Raises: ConfigError if no run could have this layout with the model of a checkpoint."""
    values = (read_files(configs)[0] if configs else read_saved_config(directory)) or {}
    of_model = {declared.name for group in (NeoXArgsModel, NeoXArgsMoE) for declared in fields(group)}
    of_model -= _OF_PRECISION
    kept = {key: value for key, value in values.items() if key in of_model and value is not None}
    if kept:
        model_config(
            kept
            | {"model_parallel_size": layout.tensor, "pipe_parallel_size": layout.pipe}
            | {"zero_optimization": {"stage": layout.zero}}
        )


def layout_of(directory: Path) -> Layout:
    """The layout that a checkpoint was written in: as its manifest says, or as its files look."""
    saved = (read_manifest(directory) or {}).get("layout")
    if saved:
        parallel = (saved[f"{kind}_parallel_size"] for kind in ("data", "model", "pipe"))
        return Layout(*parallel, saved["zero_stage"], saved["precision"])
    weights = SavedWeights(directory)
    ranks = len(model_rank_files(directory))
    pipe = ranks // weights.tensor_size if any(directory.glob("layer_*-model_*.pt")) else 0
    partitions = len(list(directory.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")))
    zero = 3 if weights.partitioned else min(1, partitions)
    dtype = _embedding(weights, 0).dtype
    precision = next((name for name, known in DTYPES.items() if known == dtype), "fp32")
    return Layout(max(1, partitions), weights.tensor_size, pipe, zero, precision)


def described_by(directory: Path, configs: list[str]) -> tuple[dict[str, ParameterSpec] | None, bool]:
    """(specs of the parameters, whether the residuals are parallel), from configs, or those that GPT-NeoX or a
    conversion keeps beside the weights; no specs for a checkpoint that describes itself."""
    files = configs or sorted(directory.glob("configs/*"))
    if not files or not (configs or is_foreign(directory) or PARAMETERS not in first_state(directory)):
        return None, False
    args = model_config(read_files(files)[0])
    saved = SavedWeights(directory)
    # The rows are known, whatever a tokenizer would say.
    args.tokenizer = None
    rows = sum(_embedding(saved, rank).shape[0] for rank in range(saved.tensor_size))
    return parameter_specs(args, rows), args.gpt_j_residual


def _embedding(weights: SavedWeights, rank: int) -> torch.Tensor:
    return weights.part("0.word_embeddings.weight", rank)

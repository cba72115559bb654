"""Whether a checkpoint fits the run."""

from pathlib import Path

from megatron.checkpointing import manifest, provenance
from megatron.common.errors import CheckpointError

# Settings of the layout without which DeepSpeed's files of another run cannot be read by this one.
_LAYOUT = ("data_parallel_size", "model_parallel_size", "pipe_parallel_size", "zero_stage", "precision")
# Settings of the layout that say which process computes what.
_GRID = ("data_parallel_size", "model_parallel_size", "pipe_parallel_size")
# Settings among a checkpoint's args that belong to its layout, not to its model.
_LAYOUT_ARGS = ("model_parallel_size", "padded_vocab_size")


def check_checkpoint_args(neox_args, checkpoint_args: dict) -> None:
    """Compare the model settings of a checkpoint with the config's.

    Raises: CheckpointError naming every setting that differs.
    """
    own = provenance.checkpoint_args(neox_args)
    if neox_args.pos_emb != "learned":
        # No table of positions: a model may be made to read longer texts, see rope_scaling.
        own.pop("max_position_embeddings")
    differing = [
        f"{name} is {checkpoint_args[name]} in the checkpoint and {own[name]} in the config"
        for name in own
        if name in checkpoint_args and checkpoint_args[name] != own[name]
    ]
    if differing:
        raise CheckpointError(
            f"the checkpoint in {neox_args.load} is of another model: " + "; ".join(differing)
        )


def check_model_args(neox_args, checkpoint_args: dict) -> None:
    """check_checkpoint_args for states that do not depend on the layout they were saved in."""
    args = {name: value for name, value in checkpoint_args.items() if name not in _LAYOUT_ARGS}
    check_checkpoint_args(neox_args, args)


def layout_changes(neox_args, directory: Path) -> list[str]:
    """Settings of the layout, with both values, in which the run differs from what the manifest of a checkpoint says.

    Raises: CheckpointError if the checkpoint is of another model.
    """
    description = manifest.read_manifest(directory) or {}
    check_model_args(neox_args, description.get("args", {}))
    saved, own = description.get("layout", {}), provenance.layout(neox_args)
    return [f"{name} {saved.get(name)} (now {own[name]})" for name in _LAYOUT if saved.get(name) != own[name]]


def check_has_optimizer(directory: Path) -> None:
    """Raises: CheckpointError if a checkpoint was saved without optimizer states."""
    if (manifest.read_manifest(directory) or {}).get("optimizer") is False:
        raise CheckpointError(
            f"load: {directory} was saved with no_save_optim: there are no optimizer states to go on with; set "
            "no_load_optim or finetune"
        )


def same_grid(neox_args, directory: Path) -> bool:
    """Whether every process computes what the process of the same rank computed that saved a checkpoint."""
    saved = (manifest.read_manifest(directory) or {}).get("layout", {})
    own = provenance.layout(neox_args)
    # A pipeline of one stage is none in this respect.
    return all(max(1, saved.get(name, 0)) == max(1, own[name]) for name in _GRID)

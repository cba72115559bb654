"""How much of its training data a run has read, in samples: batches may have had several sizes."""

from pathlib import Path

from megatron.checkpointing.saved_config import read_saved_config

SAMPLES = "consumed_samples"


def samples_read(neox_args, engine, iteration: int) -> int:
    """Samples that a run has read when it is at `iteration`."""
    return engine.samples_before + (iteration - engine.loaded_iteration) * neox_args.train_batch_size


def samples_before(neox_args, directory: Path, state: dict, iteration: int) -> int:
    """Samples that had been read when a checkpoint was saved; `state`: what a file of a model rank keeps."""
    if SAMPLES in state:
        return int(state[SAMPLES])
    # GPT-NeoX goes by the batches of the present config.
    size = (read_saved_config(directory) or {}).get("train_batch_size") or neox_args.train_batch_size
    return iteration * int(size)

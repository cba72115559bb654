"""What a checkpoint says about the run that wrote it."""

import json
import time
from pathlib import Path

import torch

from megatron import mpu
from megatron.checkpointing.manifest import TIME_FORMAT
from megatron.checkpointing.saved_config import CONFIG
from megatron.model.vocabulary import logical_vocab_size

_CHECKED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
    "make_vocab_size_divisible_by",
    "padded_vocab_size",
    "tokenizer_type",
    "model_parallel_size",
)


def checkpoint_args(neox_args) -> dict:
    """The settings that must be the same when the checkpoint is loaded."""
    return {name: getattr(neox_args, name) for name in _CHECKED}


def layout(neox_args) -> dict:
    """How the run is spread over processes."""
    return {
        "data_parallel_size": mpu.get_data_parallel_world_size(),
        "model_parallel_size": neox_args.model_parallel_size,
        "pipe_parallel_size": neox_args.pipe_parallel_size,
        "zero_stage": neox_args.zero_stage,
        "precision": neox_args.precision,
        "world_size": torch.distributed.get_world_size(),
    }


def description(neox_args, iteration: int) -> dict:
    """The manifest's entries beside the files."""
    return {
        "iteration": iteration,
        "created": time.strftime(TIME_FORMAT),
        "layout": layout(neox_args),
        "args": checkpoint_args(neox_args),
        # Rows of the embedding that belong to the model, whatever the layout pads them to.
        "vocabulary": logical_vocab_size(neox_args),
        "optimizer": not neox_args.no_save_optim,
        "git_hash": neox_args.git_hash,
    }


def write_configs(neox_args, directory: Path) -> None:
    """Keep the text of every config file of the run, and the complete merged config."""
    folder = directory / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (neox_args.config_files or {}).items():
        content = text if isinstance(text, str) else json.dumps(text, indent=1)
        (folder / name).write_text(content, encoding="utf-8")
    (directory / CONFIG).write_text(
        json.dumps(neox_args.all_config, indent=1, sort_keys=True, default=str), encoding="utf-8"
    )

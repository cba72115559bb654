"""The parameters of a config's model, without the model."""

from dataclasses import fields
from typing import Any

import torch

from megatron import mpu
from megatron.model import build_sequential
from megatron.mpu import ParameterSpec
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.fields.training_data import TrainingData, TrainingObjective

# What a config must say and a conversion does not depend on. Other keys of these kinds would only contradict them.
_NEEDED = {"train_micro_batch_size_per_gpu": 1, "train_iters": 1, "data_path": "none"}
_LEFT_OUT = {
    *(declared.name for group in (TrainingData, TrainingObjective) for declared in fields(group)),
    "train_batch_size",
    "gradient_accumulation_steps",
    "num_gpus",
    "train_epochs",
    "train_tokens",
    "train_samples",
    # These are compared with the length of the run.
    "lr_decay_iters",
    "lr_decay_fraction",
    "warmup",
    "warmup_iters",
    "warmup_tokens",
}


def model_config(values: dict[str, Any]) -> NeoXArgs:
    """A config of which only the model and its layout matter."""
    kept = {key: value for key, value in values.items() if key not in _LEFT_OUT} | _NEEDED
    tensor, pipe = kept.get("model_parallel_size", 1), kept.get("pipe_parallel_size", 0)
    return NeoXArgs.from_dict(kept | {"global_num_gpus": tensor * max(1, pipe)})


def parameter_specs(args: NeoXArgs, rows: int) -> dict[str, ParameterSpec]:
    """{logical name: spec} in the order of the layers. rows: of the vocabulary."""
    args.padded_vocab_size = rows
    with mpu.use(mpu.ParallelState()), torch.device("meta"):
        model = build_sequential(args)
    return {name: parameter.spec for name, parameter in model.logical_named_parameters()}

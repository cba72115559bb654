"""The model: a flat list of layers, built as a plain sequence or as a DeepSpeed pipeline."""

from megatron.model.gpt2_model import GPT2ModelPipe, cross_entropy
from megatron.model.sequential import build_sequential
from megatron.model.utils import (
    SequentialWrapper,
    get_params_for_weight_decay_optimization,
    mark_norms_for_sequence_parallel_grad_sync,
)

__all__ = [
    "GPT2ModelPipe",
    "SequentialWrapper",
    "build_sequential",
    "cross_entropy",
    "get_params_for_weight_decay_optimization",
    "mark_norms_for_sequence_parallel_grad_sync",
]

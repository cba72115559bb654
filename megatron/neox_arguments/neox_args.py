"""The groups of keys that the training program reads."""

from megatron.neox_arguments.fields.logging import NeoXArgsLogging
from megatron.neox_arguments.fields.model_blocks import NeoXArgsModel
from megatron.neox_arguments.fields.optimizer import NeoXArgsLRScheduler, NeoXArgsOptimizer
from megatron.neox_arguments.fields.other import NeoXArgsMoE, NeoXArgsOther, NeoXArgsTokenizer
from megatron.neox_arguments.fields.parallelism import NeoXArgsParallelism
from megatron.neox_arguments.fields.textgen import NeoXArgsTextgen
from megatron.neox_arguments.fields.training import NeoXArgsTraining
from megatron.neox_arguments.git import get_git_commit_hash
from megatron.neox_arguments.template import NeoXArgsTemplate

ATTENTION_TYPE_CHOICES = [
    "global",
    "local",
    "sparse_fixed",
    "sparse_variable",
    "bigbird",
    "bslongformer",
    "gmlp",
    "amlp",
    "flash",
    "rwkv",
    "mamba",
]

__all__ = [
    "ATTENTION_TYPE_CHOICES",
    "NeoXArgsLRScheduler",
    "NeoXArgsLogging",
    "NeoXArgsMoE",
    "NeoXArgsModel",
    "NeoXArgsOptimizer",
    "NeoXArgsOther",
    "NeoXArgsParallelism",
    "NeoXArgsTemplate",
    "NeoXArgsTextgen",
    "NeoXArgsTokenizer",
    "NeoXArgsTraining",
    "get_git_commit_hash",
]

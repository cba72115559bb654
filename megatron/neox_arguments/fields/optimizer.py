"""Optimizer, ZeRO mirrors and the learning-rate schedule."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.markers import derived
from megatron.neox_arguments.template import NeoXArgsTemplate


@dataclass
class NeoXArgsOptimizer(NeoXArgsTemplate):
    """Values read from the optimizer and zero_optimization dictionaries."""

    optimizer_type: Literal[
        "adam", "onebitadam", "cpu_adam", "cpu_torch_adam", "sm3", "madgrad_wd", "sgd", "lion", "muon"
    ] = derived("adam", "optimizer.type")
    """Kind of optimizer, in lower case."""

    use_bnb_optimizer: bool = False
    """With optimizer.type adam: keep its states in 8 bits, those of embeddings in 32 (package bitsandbytes)."""

    zero_stage: int | list[int] | Literal["all"] | None = derived(None, "zero_optimization.stage")
    """ZeRO stage: what is split over data-parallel ranks (1 optimizer states, 2 also gradients, 3 also weights)."""

    zero_reduce_scatter: bool | None = derived(None, "zero_optimization.reduce_scatter")
    """Whether ZeRO reduces gradients by reduce-scatter."""

    zero_contiguous_gradients: bool | None = derived(None, "zero_optimization.contiguous_gradients")
    """Whether ZeRO copies gradients into one contiguous buffer."""

    zero_reduce_bucket_size: int | None = derived(None, "zero_optimization.reduce_bucket_size")
    """Elements that ZeRO reduces at a time."""

    zero_allgather_bucket_size: int | None = derived(None, "zero_optimization.allgather_bucket_size")
    """Elements that ZeRO gathers at a time."""

    lr: float | None = derived(None, "optimizer.params.lr")
    """Peak learning rate; 0.001 when the optimizer names none."""


@dataclass
class NeoXArgsLRScheduler(NeoXArgsTemplate):
    """Learning rate over time."""

    lr_decay_style: Literal["constant", "linear", "cosine", "exponential", "wsd"] = "linear"
    """Shape of the learning rate after the warm-up; wsd stays at its peak until a last, short decay."""

    wsd_decay_fraction: float = 0.1
    """With lr_decay_style wsd: part of the schedule after the warm-up that the decay takes."""

    wsd_decay_style: Literal["linear", "cosine", "exponential", "sqrt"] = "linear"
    """With lr_decay_style wsd: shape of the decay from the peak to min_lr; sqrt falls as 1 - sqrt."""

    lr_decay_iters: int | None = None
    """Length of the schedule in iterations; train_iters when unset."""

    lr_decay_fraction: float | None = None
    """Length of the schedule as a fraction of train_iters; excludes lr_decay_iters."""

    min_lr: float = 0.0
    """The learning rate never decays below this."""

    warmup: float = 0.01
    """Fraction of the schedule during which the learning rate rises linearly to its peak."""

    warmup_iters: int | None = None
    """Length of the warm-up in iterations, instead of warmup."""

    warmup_tokens: int | None = None
    """Length of the warm-up in tokens, instead of warmup."""

    override_lr_scheduler: bool = False
    """On resuming keep this configuration's schedule, whatever the checkpoint says."""

    use_checkpoint_lr_scheduler: bool = False
    """On resuming take the schedule of the checkpoint, whatever this configuration says."""

"""Relative positions as T5 has them (arXiv 1910.10683): a learned bias of the scores, one for all layers."""

import math

import torch

from megatron.model.positional_embeddings.base import PositionScheme
from megatron.mpu import ParallelRelativePositionBias
from megatron.neox_arguments.attention_sizes import head_size
from megatron.registry import register


class BiasOfDistances(ParallelRelativePositionBias):
    """The bias in the form in which attention back-ends ask for it."""

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """See PositionScheme.in_scores."""
        return self.of_distances(distance)


@register("positional embedding", "rpe", example={"rpe_num_buckets": 8, "rpe_max_distance": 16})
class Relative(PositionScheme):
    @staticmethod
    def in_scores(neox_args):
        return BiasOfDistances(
            neox_args,
            scale=math.sqrt(head_size(neox_args)),
            num_buckets=neox_args.rpe_num_buckets,
            max_distance=neox_args.rpe_max_distance,
            heads=neox_args.num_attention_heads,
            shared="relative position bias",
        )

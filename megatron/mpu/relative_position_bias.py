"""Learned bias of attention scores by the distance of key and query (T5, arXiv 1910.10683), cut over the heads."""

import math

import torch

from megatron.mpu.layers import xavier_normal_
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter


def relative_position_bucket(
    distance: torch.Tensor, num_buckets: int, max_distance: int, causal: bool = True
) -> torch.Tensor:
    """Bucket of each distance (query position - key position), int64 of any shape.

    Half of the buckets hold one distance each, the others ever wider ranges up to max_distance, the last all beyond.
    Causal: later keys count as distance 0. Otherwise the second half of all buckets is for later keys.
    """
    offset = torch.zeros_like(distance)
    if not causal:
        num_buckets //= 2
        offset = (distance < 0).long() * num_buckets
        distance = distance.abs()
    distance = distance.clamp(min=0)
    exact = num_buckets // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    wide = (exact + (growth * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < exact, distance, wide)


class ParallelRelativePositionBias(torch.nn.Module):
    """Bias of this rank's heads.

    Args:
        scale: multiplies the bias; GPT-NeoX takes the square root of a head's size.
        causal: no later keys are seen, so that all buckets are for earlier ones.
        heads: of the whole model.
        shared: all modules of a model with this name have one parameter in common (ParameterSpec.shared).
    Parameter: weight [num_buckets, heads/tp].
    """

    def __init__(
        self,
        neox_args,
        scale: float,
        causal: bool = True,
        num_buckets: int = 32,
        max_distance: int = 128,
        heads: int = 8,
        init_method: InitMethod = xavier_normal_,
        shared: str = "",
    ):
        super().__init__()
        self.scale, self.causal = scale, causal
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.weight = make_parameter(
            ParameterSpec((num_buckets, heads), init_method, shard_dim=1, shared=shared)
        )

    def of_distances(self, distance: torch.Tensor) -> torch.Tensor:
        """Distances (query position - key position), int64 of any shape -> [n, *shape] for the n heads of this rank."""
        buckets = relative_position_bucket(distance, self.num_buckets, self.max_distance, self.causal)
        return self.weight.t()[:, buckets] * self.scale

    def forward(self, q_len: int, k_len: int) -> torch.Tensor:
        """[1, n, q_len, k_len] for queries that are the last q_len of k_len positions."""
        positions = torch.arange(k_len, device=self.weight.device)
        return self.of_distances(positions[k_len - q_len :, None] - positions).unsqueeze(0)

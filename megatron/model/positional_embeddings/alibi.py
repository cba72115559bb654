"""Attention with linear biases (ALiBi, arXiv 2108.12409)."""

import torch

from megatron import mpu
from megatron.model.positional_embeddings.base import PositionScheme
from megatron.mpu.utils import divide
from megatron.registry import register


def alibi_slopes(heads: int) -> torch.Tensor:
    """fp32 [heads]: the geometric series from 2^(-8/p) in steps of itself for p heads, the largest power of two that
    there are; the heads beyond have every other slope, from the first on, of the series for 2p."""
    power = 1 << (heads.bit_length() - 1)
    series = [2.0 ** (-8.0 * number / power) for number in range(1, power + 1)]
    between = [2.0 ** (-8.0 * number / (2 * power)) for number in range(1, 2 * power, 2)]
    return torch.tensor((series + between)[:heads])


def rank_slopes(heads: int, ranks: int, rank: int) -> torch.Tensor:
    """fp32 [heads/ranks]: the slopes of the heads of a tensor-parallel rank."""
    own = divide(heads, ranks)
    return alibi_slopes(heads)[rank * own : (rank + 1) * own].clone()


class AliBi(torch.nn.Module):
    """The bias as a tensor, for scores that are one. Buffer: slopes [num_heads/mp_size]."""

    def __init__(self, num_heads: int, mp_size: int = 1, mp_rank: int = 1):
        super().__init__()
        # A single rank has number 0, whatever is said.
        self.register_buffer("slopes", rank_slopes(num_heads, mp_size, mp_rank if mp_size > 1 else 0))

    def bias(self, seq_len_q: int, seq_len_k: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """[n, seq_len_q, seq_len_k], queries being the last of seq_len_k positions: -slope * distance, in fp32;
        0 for later keys."""
        keys = torch.arange(seq_len_k, dtype=torch.float32, device=device)
        distance = (keys[seq_len_k - seq_len_q :, None] - keys).clamp(min=0)
        return (-self.slopes.to(device, torch.float32)[:, None, None] * distance).to(dtype)

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """scores [b, n, q, k] plus the bias."""
        return scores + self.bias(*scores.shape[-2:], scores.device, scores.dtype)


@register("positional embedding", "alibi")
class Linear(PositionScheme):
    @staticmethod
    def in_scores(neox_args):
        return rank_slopes(
            neox_args.num_attention_heads, mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
        )

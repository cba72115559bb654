"""Rotary positions under the names of GPT-NeoX's fused kernel; the model's own routine, which is one as well."""

import torch

from megatron.model.positional_embeddings import rotate

__all__ = ["FusedRoPEFunc", "fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_cached"]


def fused_apply_rotary_pos_emb(
    t: torch.Tensor, freqs: torch.Tensor, transpose_output_memory: bool = False
) -> torch.Tensor:
    """t [s, b, n, d] with its first features turned by angles, freqs [s, 1, 1, rot], whose halves are equal.

    transpose_output_memory: lay the result out in memory as [b, s, n, d].
    """
    angles = freqs.float()
    return fused_apply_rotary_pos_emb_cached(t, angles.cos(), angles.sin(), transpose_output_memory)


def fused_apply_rotary_pos_emb_cached(
    t: torch.Tensor, cos_: torch.Tensor, sin_: torch.Tensor, transpose_output_memory: bool = False
) -> torch.Tensor:
    """The same with cosines and sines of the angles."""
    half = cos_.shape[-1] // 2
    turned = rotate(t, cos_[..., :half].to(t.dtype), sin_[..., :half].to(t.dtype))
    return turned.transpose(0, 1).contiguous().transpose(0, 1) if transpose_output_memory else turned


class FusedRoPEFunc:
    """fused_apply_rotary_pos_emb as `apply`, as autograd functions are called."""

    apply = staticmethod(fused_apply_rotary_pos_emb)

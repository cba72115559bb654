"""Rotary position embedding (arXiv 2104.09864) in the half-rotation form: x cos + rotate_half(x) sin.

Legend: s sequence, b batch, n heads, d head size, rot rotated size (the first rot features of each head).
"""

from collections.abc import Callable
from dataclasses import astuple

import torch

from megatron.model.positional_embeddings.base import PositionScheme
from megatron.model.positional_embeddings.frequencies import Frequencies
from megatron.model.positional_embeddings.rope_scaling import make_frequencies
from megatron.registry import register

# cos and sin for all layers: the table made last, as the frequencies may follow the length of the sequence. A plain
# dict, because torch.compile follows a look-up in it but not functools' caches.
_tables: dict[tuple, tuple[int, torch.Tensor, torch.Tensor]] = {}


def _half_table(
    frequencies: Frequencies, name: tuple, length: int, rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position times frequency for a sequence of `length`, [rows or more, 1, 1, dim/2], computed in
    fp32. name: of the frequencies, in plain values."""
    key, regime = (name, dtype, device), frequencies.regime(length)
    made_for, cos, sin = _tables.get(key, (None, None, None))
    if made_for != regime or cos.shape[0] < length:
        with torch.inference_mode(False):  # a table made while sampling must serve training later
            positions = torch.arange(max(rows, length), dtype=torch.float32, device=device)
            angles = torch.outer(positions, frequencies.inverse(length, device))[:, None, None, :]
            cos, sin = ((wave * frequencies.magnitude).to(dtype) for wave in (angles.cos(), angles.sin()))
        _tables[key] = regime, cos, sin
    return cos, sin


class RotaryEmbedding(torch.nn.Module):
    """Tables of cos and sin for `dim` rotated features.

    Args:
        max_seq_len: length of the table to begin with; it grows when a longer one is asked for.
        precision: dtype of the tables that forward returns.
        save_inv_freqs: register the inverse frequencies as a buffer, for checkpoints that have it. The tables are
            always computed from fp32 frequencies, as casting a model rounds its buffers.
        frequencies: other ones than those of dim and base.
    """

    def __init__(
        self,
        dim: int,
        max_seq_len: int,
        base: float = 10000,
        precision: torch.dtype = torch.half,
        save_inv_freqs: bool = False,
        frequencies: Frequencies | None = None,
    ):
        super().__init__()
        self.frequencies = frequencies or Frequencies(dim, base, max_seq_len)
        self._name = (type(self.frequencies).__name__, *astuple(self.frequencies))
        self.precision = precision
        self.max_seq_len = max_seq_len
        if save_inv_freqs:
            self.register_buffer("inv_freq", self.frequencies.inverse(max_seq_len))
        self.half_tables(max_seq_len, precision, torch.get_default_device())

    def half_tables(self, length: int, dtype: torch.dtype, device: torch.device):
        """cos and sin of positions 0..length-1 in a sequence of that length, [length, 1, 1, dim/2]."""
        if length > self.max_seq_len:
            self.max_seq_len = 2 * length  # amortised growth
        cos, sin = _half_table(self.frequencies, self._name, length, self.max_seq_len, dtype, device)
        return cos[:length], sin[:length]

    def forward(self, x: torch.Tensor, seq_dim: int = 0, seq_len: int | None = None):
        """cos and sin, each [seq_len, 1, 1, dim], for x whose length along seq_dim is seq_len."""
        length = x.shape[seq_dim] if seq_len is None else seq_len
        cos, sin = self.half_tables(length, self.precision, x.device)
        return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(x1, x2) -> (-x2, x1) for the halves of the last dimension."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def apply_rotary_pos_emb(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, offset: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate q and k [s, b, n, rot] that stand at positions offset, offset+1, ...; cos, sin [length, 1, 1, rot]."""
    cos, sin = (table[offset : offset + q.shape[0]] for table in (cos, sin))
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


apply_rotary_pos_emb_torch = apply_rotary_pos_emb

Splitter = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def split_and_rotate(
    qkv: torch.Tensor, split: Splitter, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q, k, v) of a fused projection, q and k rotated.

    Args:
        qkv: [s, b, ...]; split: gives views q, k, v [s, b, n, d] of any tensor laid out like qkv.
        cos, sin: half tables [s, 1, 1, rot/2], or [s, b, 1, rot/2].
    """
    if torch.compiler.is_compiling():  # it fuses the plain form itself
        return split_and_rotate_eager(qkv, split, cos, sin)
    return _SplitAndRotate.apply(qkv, split, cos, sin)


def split_and_rotate_eager(
    qkv: torch.Tensor, split: Splitter, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The plain form of split_and_rotate."""
    rotated = 2 * cos.shape[-1]
    cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    q, k, v = split(qkv)
    turned = apply_rotary_pos_emb(q[..., :rotated], k[..., :rotated], cos, sin)
    if rotated == q.shape[-1]:
        return *turned, v
    q, k = (torch.cat((part, x[..., rotated:]), -1) for part, x in zip(turned, (q, k), strict=True))
    return q, k, v


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [s, b, ..., d] with its first features turned; cos, sin: half tables that fit it, [s, 1 or b, ..., rot/2]."""
    if torch.compiler.is_compiling():
        return split_and_rotate_eager(x, lambda x: (x, x, x), cos, sin)[0]
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _rotated(x, cos, sin)


class _Rotate(torch.autograd.Function):
    """_SplitAndRotate for one tensor."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx, gradient):
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


class _SplitAndRotate(torch.autograd.Function):
    """Reads and writes each element once per direction and keeps nothing but the tables."""

    @staticmethod
    def forward(ctx, qkv, split, cos, sin):
        ctx.split, ctx.shape = split, qkv.shape
        ctx.save_for_backward(cos, sin)
        q, k, v = split(qkv)
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx, grad_q, grad_k, grad_v):
        cos, sin = ctx.saved_tensors
        gradient = grad_v.new_empty(ctx.shape)
        into_q, into_k, into_v = ctx.split(gradient)
        # The transpose of a rotation is the rotation by the opposite angle.
        _rotate_into(into_q, grad_q, cos, -sin)
        _rotate_into(into_k, grad_k, cos, -sin)
        into_v.copy_(grad_v)
        return gradient, None, None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return _rotate_into(torch.empty_like(x, memory_format=torch.contiguous_format), x, cos, sin)


def _rotate_into(out: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out


@register("positional embedding", "rotary")
class Rotary(PositionScheme):
    @staticmethod
    def in_attention(neox_args, head_size):
        size, base = int(head_size * neox_args.rotary_pct), neox_args.rotary_emb_base
        return RotaryEmbedding(
            size,
            neox_args.seq_length,
            precision=neox_args.params_dtype,
            save_inv_freqs=neox_args.rotary_save_freqs_buffer,
            frequencies=make_frequencies(
                size, base, neox_args.max_position_embeddings, neox_args.rope_scaling
            ),
        )

"""Position schemes, one file per choice of the config key `pos_emb`."""

from megatron.model.positional_embeddings.alibi import AliBi
from megatron.model.positional_embeddings.base import PositionScheme
from megatron.model.positional_embeddings.learned import LearnedPositionalEmbedding
from megatron.model.positional_embeddings.rotary import (
    RotaryEmbedding,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_torch,
    rotate,
    rotate_half,
    split_and_rotate,
)
from megatron.model.positional_embeddings.sinusoidal import SinusoidalPositionalEmbedding

__all__ = [
    "AliBi",
    "LearnedPositionalEmbedding",
    "PositionScheme",
    "RotaryEmbedding",
    "SinusoidalPositionalEmbedding",
    "apply_rotary_pos_emb",
    "apply_rotary_pos_emb_torch",
    "rotate",
    "rotate_half",
    "split_and_rotate",
]

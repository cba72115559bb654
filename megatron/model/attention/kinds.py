"""Kinds of attention layer: each names the back-end that computes it in this run."""

from megatron.model.attention import flash
from megatron.registry import register


@register("attention", "global", "flash")
def full_attention(neox_args) -> str:
    """Causal attention over the whole sequence, by the fastest back-end there is."""
    return "flash_attn" if flash.usable(neox_args) else "sdpa"

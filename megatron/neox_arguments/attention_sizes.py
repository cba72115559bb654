"""Sizes of the attention heads that several parts need: the model, the rules, the counts of operations."""

from collections.abc import Iterator
from typing import Any


def head_size(args: Any) -> int:
    """Features of an attention head: `head_dim`, or the share of `hidden_size`."""
    return args.head_dim or args.hidden_size // args.num_attention_heads


def key_value_heads(args: Any) -> int:
    """Key and value heads of the model: `num_kv_heads`, or as many as there are query heads."""
    return args.num_kv_heads or args.num_attention_heads


def head_problems(args: Any) -> Iterator[str]:
    """What is wrong with the head counts of a configuration, in itself and over its tensor-parallel ranks."""
    hidden, heads, ranks = args.hidden_size, args.num_attention_heads, args.model_parallel_size
    if (
        not hidden
        or not heads
        or hidden < 0
        or heads < 0
        or min(args.num_kv_heads or 1, args.head_dim or 1) < 1
    ):
        return
    if hidden % heads and args.head_dim is None:
        yield f"hidden_size={hidden} must be a multiple of num_attention_heads={heads}, or head_dim be set"
        return
    if heads % ranks:
        yield f"num_attention_heads={heads} must be a multiple of model_parallel_size={ranks}"
    kv_heads, size = key_value_heads(args), head_size(args)
    if heads % kv_heads:
        yield f"num_kv_heads={kv_heads} must divide num_attention_heads={heads}"
    elif kv_heads % ranks and ranks % kv_heads:
        yield (
            f"num_kv_heads={kv_heads} and model_parallel_size={ranks}: one must be a multiple of the other, so that "
            "the queries of a rank have keys and values of their own or share one head"
        )
    elif kv_heads < ranks and size % (ranks // kv_heads):
        yield (
            f"num_kv_heads={kv_heads} with model_parallel_size={ranks} cuts a key head of {size} features into "
            f"{ranks // kv_heads} parts; use fewer ranks"
        )

"""Kinds of attention layer without a block-sparse layout of their own choosing: all keys, or the nearest ones."""

import torch

from megatron.model.attention.pattern import BlockLayout, Pattern
from megatron.neox_arguments.sparsity import sparsity_options
from megatron.registry import register


@register("attention", "global", "flash")
def full_attention(neox_args, layer_number: int) -> Pattern:
    """Causal attention over the whole sequence."""
    return Pattern()


@register("attention", "local", example={"sparsity_config": {"window": 5}})
def local_attention(neox_args, layer_number: int) -> Pattern:
    """The last `window` keys of sparsity_config, or its last num_local_blocks blocks of keys, the own one included."""
    options = sparsity_options("local", neox_args.sparsity_config)
    if options["window"] is not None:
        return Pattern(window=options["window"])
    count = options["num_local_blocks"] or options["num_sliding_window_blocks"]

    def sliding(blocks: int, head: int) -> torch.Tensor:
        number = torch.arange(blocks)
        return number[:, None] - number < count

    return Pattern(layout=BlockLayout(options["block"], sliding, range(1)))

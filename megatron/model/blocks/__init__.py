"""Blocks that are no transformer layers: the names of `attention_config` beside the attention kinds.

A block is a module class, built as block(neox_args, init_method, output_layer_init_method, layer_number, use_cache),
which maps [s, b, h] to [s, b, h] ([s/tp, b, h] with sequence parallelism) and adds its residual itself.
"""

"""Floating point operations of a training step, counted from the real architecture.

Convention (arXiv:2104.04473, arXiv:2204.02311): a multiply-add is two operations; matrix products of the forward pass
once, of the backward pass twice; attention scores over the full s x s square, although a causal kernel may skip half,
or over the s x w strip of a window of w positions, or over as much of the square as a block-sparse layout has of all
the blocks that causal attention has. Model FLOPs (MFU) leave recomputation out; hardware FLOPs (HFU) count the forward
pass of recomputed layers again.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from megatron.model.attention.backend import pattern_of_layer
from megatron.model.attention.pattern import BlockLayout
from megatron.model.blocks.mamba import CONV_WIDTH, STATES
from megatron.model.rwkv.mixing import DECAY_RANK, MIX_RANK
from megatron.neox_arguments.attention_sizes import head_size, key_value_heads
from megatron.neox_arguments.block_sizes import gmlp_width, mamba_channels
from megatron.neox_arguments.experts import expert_width, has_experts
from megatron.neox_arguments.mlp_sizes import GATED_ACTIVATIONS, mlp_sizes

FORWARD_AND_BACKWARD = 3
WITH_RECOMPUTATION = 4


def model_flops_per_iteration(neox_args, sequence: int | None = None) -> float:
    """Operations of forward and backward pass over one global batch, all devices together.

    Args: sequence: tokens per sample where they are fewer than `seq_length`.
    """
    return _flops(neox_args, FORWARD_AND_BACKWARD, sequence or neox_args.seq_length)


def hardware_flops_per_iteration(neox_args, sequence: int | None = None) -> float:
    """The same with the recomputation of checkpointed layers."""
    passes = WITH_RECOMPUTATION if neox_args.checkpoint_activations else FORWARD_AND_BACKWARD
    return _flops(neox_args, passes, sequence or neox_args.seq_length)


def _flops(neox_args, passes: int, sequence: int) -> float:
    layers = 0.0
    for number, kind in enumerate(neox_args.attention_config):
        layers += _BLOCKS.get(kind, _transformer)(neox_args, number, sequence)
    hidden, embedding = neox_args.hidden_size, neox_args.embedding_size or neox_args.hidden_size
    head = 2 * embedding * neox_args.padded_vocab_size
    if embedding != hidden:
        head += 2 * 2 * embedding * hidden  # into the blocks and out of them
    # The output layer is never recomputed.
    return float(neox_args.train_batch_size * sequence) * (layers * passes + head * FORWARD_AND_BACKWARD)


# Each of the following: operations of the forward pass of a layer for one token of a sample of `sequence` tokens.


def _transformer(args: Any, layer_number: int, sequence: int) -> float:
    query_width, kv_width = (
        heads * head_size(args) for heads in (args.num_attention_heads, key_value_heads(args))
    )
    projections = 2 * args.hidden_size * 2 * (query_width + kv_width)
    scores_and_mixture = 4 * _seen(args, layer_number, sequence) * query_width
    mlp = _experts(args) if has_experts(args, layer_number) else 2 * args.hidden_size * sum(mlp_sizes(args))
    return projections + scores_and_mixture + mlp


def _seen(args: Any, layer_number: int, sequence: int) -> float:
    """Keys that count for a query."""
    pattern = pattern_of_layer(args, layer_number, None)
    seen = float(min(sequence, pattern.window or sequence))
    if pattern.layout is None:
        return seen
    options = (args.attention_config[layer_number], str(args.sparsity_config), args.seed, layer_number)
    key = (*options, pattern.layout.heads, sequence)
    if key not in _SHARES:
        _SHARES[key] = _share_of_blocks(pattern.layout, sequence)
    return min(seen, sequence * _SHARES[key])


# Shares of layouts that have been counted, which for long sequences takes a while.
_SHARES: dict[tuple, float] = {}


def _share_of_blocks(layout: BlockLayout, sequence: int) -> float:
    """Of the blocks up to the own one, how many a block of queries sees: mean over queries and this rank's heads."""
    blocks = -(-sequence // layout.block)
    table = layout.table(sequence, torch.device("cpu"))[:, :blocks, :blocks]
    return float(table.sum()) / (table.shape[0] * blocks * (blocks + 1) / 2)


def _experts(args: Any) -> float:
    """The router, and those experts that a token is sent to."""
    matrices = 3 if args.activation in GATED_ACTIVATIONS else 2
    active = args.moe_top_k * matrices * expert_width(args)
    return 2 * args.hidden_size * (args.moe_num_experts + active)


def _mamba(args: Any, layer_number: int, sequence: int) -> float:
    """arXiv 2312.00752: two projections in and one out, a convolution, the projections of step, B and C, and the scan
    at 7 operations for each state."""
    hidden, channels = args.hidden_size, mamba_channels(args)
    step_rank = math.ceil(hidden / 16)
    projections = 2 * 3 * hidden * channels
    return projections + channels * (2 * CONV_WIDTH + 4 * step_rank + (4 + 7) * STATES + 1)


def _rwkv(args: Any, layer_number: int, sequence: int) -> float:
    """arXiv 2404.05892: receptance, key, value, gate and output of the time mix, its low-rank mixtures, the recurrence
    at 6 operations for each state, and three matrices of the channel mix."""
    hidden, width = args.hidden_size, args.dim_att
    time_mix = 2 * 5 * hidden * width + 2 * (2 * 5 * MIX_RANK * hidden + DECAY_RANK * (hidden + width))
    recurrence = 6 * width * (width // args.num_attention_heads)
    return time_mix + recurrence + 2 * (hidden * hidden + 2 * hidden * args.ffn_dim)


def _gmlp(args: Any, layer_number: int, sequence: int) -> float:
    """arXiv 2105.08050: h -> 2 f, a mixture over all positions of f features, f -> h."""
    width = gmlp_width(args)
    return 2 * 3 * args.hidden_size * width + 2 * sequence * width


def _amlp(args: Any, layer_number: int, sequence: int) -> float:
    """A gMLP with one attention head, whose q, k and v come from 2 f features and whose result goes to f."""
    head, width = args.gmlp_attn_dim, gmlp_width(args)
    attention = 2 * (2 * width * 3 * head + head * width) + 4 * sequence * head
    return _gmlp(args, layer_number, sequence) + attention


# kind in attention_config -> its count; all others are transformer layers
_BLOCKS: dict[str, Callable[[Any, int, int], float]] = {
    "mamba": _mamba,
    "rwkv": _rwkv,
    "gmlp": _gmlp,
    "amlp": _amlp,
}


def get_forward_backward_flops(neox_args, iter_time_s: float) -> float:
    """Model FLOPs per second and device of an iteration that took `iter_time_s` seconds."""
    return model_flops_per_iteration(neox_args) / (iter_time_s * neox_args.world_size)


def get_actual_flops(neox_args, iter_time_s: float) -> float:
    """Hardware FLOPs per second and device, recomputation included."""
    return hardware_flops_per_iteration(neox_args) / (iter_time_s * neox_args.world_size)


def human_readable_flops(num: float) -> str:
    """`9.939e12 -> "9.9TFLOPS"`."""
    for unit in ("", "KFLOPS", "MFLOPS", "GFLOPS", "TFLOPS", "PFLOPS", "EFLOPS"):
        if abs(num) < 1000.0:
            return f"{num:3.1f}{unit}"
        num /= 1000.0
    return f"{num:3.1f}ZFLOPS"

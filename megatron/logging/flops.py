"""Floating point operations of a training step, counted from the real architecture.

Convention (arXiv:2104.04473, arXiv:2204.02311): a multiply-add is two operations; matrix products of the forward pass
once, of the backward pass twice; attention scores over the full s x s square, although a causal kernel may skip half.
Model FLOPs (MFU) leave recomputation out; hardware FLOPs (HFU) count the forward pass of recomputed layers again.
"""

from megatron.neox_arguments.attention_sizes import head_size, key_value_heads
from megatron.neox_arguments.mlp_sizes import mlp_sizes

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
    hidden = neox_args.hidden_size
    tokens = neox_args.train_batch_size * sequence
    size = head_size(neox_args)
    query_width, kv_width = neox_args.num_attention_heads * size, key_value_heads(neox_args) * size
    up, down = mlp_sizes(neox_args)
    layer_weights = hidden * 2 * (query_width + kv_width) + hidden * up + down * hidden
    layers = neox_args.num_layers * (2 * layer_weights + 4 * sequence * query_width) * passes
    # The output layer is never recomputed.
    head = 2 * hidden * neox_args.padded_vocab_size * FORWARD_AND_BACKWARD
    return float(tokens) * (layers + head)


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

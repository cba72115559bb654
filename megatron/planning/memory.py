"""Memory per device, estimated by part.

Parameters, gradients and optimizer states follow ZeRO (arXiv 1910.02054); activations follow arXiv 2205.05198 without
the attention scores, which a fused attention back-end never stores. Buffers of communication, the allocator's slack and
the CUDA context (together one to several GB) are not part of the estimate.
"""

from dataclasses import dataclass
from typing import Any

from megatron.neox_arguments.attention_sizes import head_size, key_value_heads
from megatron.neox_arguments.mlp_sizes import has_dense_mlp, mlp_sizes
from megatron.planning.layers import Layer, local_parameters
from megatron.registry import capabilities


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one pipeline stage."""

    stage: int
    parameters: float
    gradients: float
    optimizer_states: float
    activations: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.parameters + self.gradients + self.optimizer_states + self.activations


def estimate(neox_args: Any, stages: list[list[Layer]]) -> list[Memory]:
    """One estimate for each pipeline stage."""
    return [_stage(neox_args, index, stages) for index in range(len(stages))]


def checkpoint_bytes(neox_args: Any, parameters: int) -> float:
    """Size of one checkpoint: weights in the precision of training, and the optimizer's fp32 values."""
    return parameters * (_element(neox_args) + _optimizer_bytes(neox_args))


def _stage(neox_args: Any, index: int, stages: list[list[Layer]]) -> Memory:
    count = local_parameters(stages[index])
    zero, replicas = neox_args.zero_stage, neox_args.data_parallel_size
    # bfloat16 gradients are summed in fp32 over the micro batches.
    gradient = 2 if neox_args.precision == "fp16" else 4
    return Memory(
        stage=index,
        parameters=count * _element(neox_args) / (replicas if zero >= 3 else 1),
        gradients=count * gradient / (replicas if zero >= 2 else 1),
        optimizer_states=count * _optimizer_bytes(neox_args) / (replicas if zero >= 1 else 1),
        activations=_activations(neox_args, index, stages),
    )


def _activations(neox_args: Any, index: int, stages: list[list[Layer]]) -> float:
    blocks = sum("TransformerLayer" in layer.name for layer in stages[index])
    ranks = neox_args.model_parallel_size
    tokens = neox_args.seq_length * neox_args.train_micro_batch_size_per_gpu
    element = _element(neox_args)
    per_block = _block_activations(neox_args, tokens)
    if neox_args.checkpoint_activations:
        kept_input = tokens * neox_args.hidden_size * element
        kept_input /= ranks if neox_args.partition_activations or neox_args.sequence_parallel else 1
        chunk = min(neox_args.checkpoint_num_layers, blocks)
        kept = 0 if neox_args.checkpoint_in_cpu else kept_input * -(-blocks // max(chunk, 1))
        at_once = chunk * per_block
    else:
        kept, at_once = blocks * per_block, 0.0
    in_flight = min(neox_args.gradient_accumulation_steps, len(stages) - index)
    logits = 0.0
    if index == len(stages) - 1:
        # Logits and their gradient, and the fp32 copy of the loss.
        logits = tokens * neox_args.padded_vocab_size / ranks * (element + 4)
    return kept * in_flight + at_once + logits


def _block_activations(neox_args: Any, tokens: int) -> float:
    """Bytes that the backward pass of one block needs for one micro batch."""
    hidden, ranks, element = neox_args.hidden_size, neox_args.model_parallel_size, _element(neox_args)
    # In units of hidden: what each norm reads and what it writes. Parallel branches read the same, tied ones share all.
    whole = 4.0
    if neox_args.gpt_j_residual:
        whole = 2.0 if neox_args.gpt_j_tied else 3.0
    # Queries and attention output, keys and values; before and after the activation function.
    attention = 2.0 * head_size(neox_args) * (neox_args.num_attention_heads + key_value_heads(neox_args))
    cut = attention / hidden + (sum(mlp_sizes(neox_args)) / hidden if has_dense_mlp(neox_args) else 8.0)
    masks = 2.0 if neox_args.hidden_dropout > 0 else 0.0
    replicated = (whole * element + masks) / (ranks if neox_args.sequence_parallel else 1)
    return tokens * hidden * (replicated + cut * element / ranks)


def _element(neox_args: Any) -> int:
    return 4 if neox_args.precision == "fp32" else 2


def _optimizer_bytes(neox_args: Any) -> int:
    masters = 0 if neox_args.precision == "fp32" else 4
    if neox_args.use_bnb_optimizer:
        return masters + 2
    return masters + 4 * capabilities("optimizer", neox_args.optimizer_type).states

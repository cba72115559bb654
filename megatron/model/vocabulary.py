"""The rows of the vocabulary that count.

The vocabulary is padded twice: to a multiple of make_vocab_size_divisible_by, which is part of the model, and further
to a multiple of that times the tensor-parallel degree, which is not. Rows of the second kind start at zero and their
logits are -inf, so that a run does not depend on its layout.
"""

import math

import torch

from megatron import mpu
from megatron.mpu.parameters import InitMethod


def logical_vocab_size(neox_args) -> int:
    """Rows that belong to the model; all of them where the tokenizer is not known."""
    tokenizer = getattr(neox_args, "tokenizer", None)
    if tokenizer is None:
        return neox_args.padded_vocab_size
    divisor = neox_args.make_vocab_size_divisible_by
    return min(neox_args.padded_vocab_size, math.ceil(tokenizer.vocab_size / divisor) * divisor)


def init_logical_rows(init_method: InitMethod, rows: int) -> InitMethod:
    """init_method for the first `rows` rows, zero for the others."""

    def init_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        init_method(tensor[:rows], generator)
        tensor[rows:] = 0.0
        return tensor

    # With what muP asks of the method.
    vars(init_).update(vars(init_method))
    return init_


def mask_layout_padding(logits: torch.Tensor, rows: int) -> torch.Tensor:
    """logits [..., V/tp] of this rank with -inf (in place) for vocabulary rows from `rows` on."""
    width = logits.shape[-1]
    valid = rows - mpu.get_model_parallel_rank() * width
    if valid < width:
        logits[..., max(0, valid) :] = -torch.inf
    return logits

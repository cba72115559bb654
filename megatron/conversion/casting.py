"""Weights in another number format, as long as it can hold them."""

import torch

from megatron.common.errors import CheckpointError


def cast(tensor: torch.Tensor, dtype: torch.dtype, name: str, copy: bool = False) -> torch.Tensor:
    """`tensor` as dtype, rounded; itself if it has that format, unless a `copy` is asked for.

    Raises: CheckpointError, naming the parameter, if a number is too large for the format (above 65,504 for fp16).
    """
    made = tensor.to(dtype, copy=copy)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        lost = made.isinf() & tensor.isfinite()
        if lost.any():
            raise CheckpointError(
                f"{name} has numbers as large as {tensor[lost].abs().max():g}, which {dtype} cannot hold; convert with "
                "--precision bf16 or fp32"
            )
    return made

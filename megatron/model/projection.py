"""Between word embeddings of one width and a residual stream of another."""

import torch

from megatron.mpu.linear import linear
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter


class Projection(torch.nn.Module):
    """A linear layer without bias, whole on every tensor-parallel rank.

    Args: sees_part: with sequence parallelism it is applied to this rank's part of the sequence.
    Parameter: weight [output_size, input_size].
    """

    def __init__(self, input_size: int, output_size: int, init_method: InitMethod, sees_part: bool = False):
        super().__init__()
        self.weight = make_parameter(ParameterSpec((output_size, input_size), init_method))
        self.weight.sequence_parallel = sees_part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., input_size] -> [..., output_size]."""
        return linear(x, self.weight)


def embedding_width(neox_args) -> int:
    """Features of the word embeddings; keys embedding_size and hidden_size."""
    return neox_args.embedding_size or neox_args.hidden_size

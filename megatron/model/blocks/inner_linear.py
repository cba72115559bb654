"""Linear layers inside of a tensor-parallel region, where every rank has its own features of the whole sequence."""

import torch

from megatron import mpu
from megatron.mpu.linear import linear
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter, zeros_


class InnerRowLinear(torch.nn.Module):
    """From own features to features that every rank has whole and uses for its own part.

    Args: blocks: sizes of blocks of input features that are cut over the ranks on their own.
    Parameters: weight [output_size, input_size/tp]; bias [output_size] on every rank.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        init_method: InitMethod,
        bias: bool = True,
        blocks: tuple[int, ...] = (),
    ):
        super().__init__()
        self.weight = make_parameter(
            ParameterSpec((output_size, input_size), init_method, shard_dim=1, blocks=blocks)
        )
        self.bias = make_parameter(ParameterSpec((output_size,), zeros_)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., input_size/tp] -> [..., output_size]."""
        if mpu.get_model_parallel_world_size() == 1:
            return linear(x, self.weight, self.bias)
        total = mpu.reduce_from_model_parallel_region(linear(x, self.weight))
        if self.bias is not None:
            total = total + self.bias
        # Each rank's part of what follows adds to the gradient.
        return mpu.copy_to_model_parallel_region(total)


class InnerColumnLinear(torch.nn.Module):
    """From features that InnerRowLinear gave to own ones, without communication.

    Parameters: weight [output_size/tp, input_size]; bias [output_size/tp].
    """

    def __init__(
        self, input_size: int, output_size: int, init_method: InitMethod, bias_init: InitMethod = zeros_
    ):
        super().__init__()
        self.weight = make_parameter(ParameterSpec((output_size, input_size), init_method, shard_dim=0))
        self.bias = make_parameter(ParameterSpec((output_size,), bias_init, shard_dim=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., input_size] -> [..., output_size/tp]."""
        return linear(x, self.weight, self.bias)

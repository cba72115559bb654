"""The feed-forward half of a block."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from megatron import mpu
from megatron.common.errors import ConfigError
from megatron.model.activations import get_activation
from megatron.mpu.parameters import InitMethod


class MlpSizes(NamedTuple):
    """Output width of linear1 (both halves of a gated one together) and input width of linear2."""

    linear1_output: int
    linear2_input: int


def mlp_sizes(
    hidden_size: int,
    intermediate_size: int | None,
    expansion_factor: float | None,
    multiple_of: int,
    gated: bool,
) -> MlpSizes:
    """GPT-NeoX's widths. A gated MLP has a third of intermediate_size per half, which keeps its parameter count; each
    width is rounded up to multiple_of on its own, so the two may disagree (see checked_mlp_sizes)."""
    if intermediate_size is not None:
        width = intermediate_size
    else:
        width = int((4 if expansion_factor is None else expansion_factor) * hidden_size)
    linear1 = linear2 = width
    if gated:
        linear1 = int(width * 2 / 3)
        linear2 = linear1 // 2
    double = 2 * multiple_of
    return MlpSizes(math.ceil(linear1 / double) * double, math.ceil(linear2 / multiple_of) * multiple_of)


def checked_mlp_sizes(neox_args, multiple_of: int, gated: bool) -> MlpSizes:
    """mlp_sizes of a config. Raises: ConfigError if the two linear layers would not fit together."""
    sizes = mlp_sizes(
        neox_args.hidden_size, neox_args.intermediate_size, neox_args.expansion_factor, multiple_of, gated
    )
    produced = sizes.linear1_output // 2 if gated else sizes.linear1_output
    if produced != sizes.linear2_input:
        raise ConfigError(
            f"the MLP's first matrix gives {produced} features and its second takes {sizes.linear2_input}: "
            f"choose intermediate_size {neox_args.intermediate_size} and mlp_multiple_of {multiple_of} so that both "
            "round to the same width"
        )
    return sizes


class ParallelMLP(torch.nn.Module):
    """linear2(activation(linear1(x))).

    Args:
        parallel_output: leave the output unsummed (see RowParallelLinear).
        multiple_of: the widths are rounded up to a multiple of this.
    """

    def __init__(
        self,
        neox_args,
        init_method: InitMethod,
        output_layer_init_method: InitMethod,
        parallel_output: bool = False,
        multiple_of: int = 256,
    ):
        super().__init__()
        self.activation: Callable[[torch.Tensor], torch.Tensor]
        self.activation, gated = get_activation(neox_args)
        sizes = checked_mlp_sizes(neox_args, multiple_of, gated)
        self.linear1 = mpu.ColumnParallelLinear(
            neox_args,
            input_size=neox_args.hidden_size,
            output_size=sizes.linear1_output,
            bias=neox_args.use_bias_in_mlp,
            gather_output=False,
            init_method=init_method,
            stride=2 if gated else 1,
        )
        self.linear2 = mpu.RowParallelLinear(
            neox_args,
            input_size=sizes.linear2_input,
            output_size=neox_args.hidden_size,
            bias=neox_args.use_bias_in_mlp,
            input_is_parallel=True,
            init_method=output_layer_init_method,
            skip_bias_add=mpu.get_model_parallel_world_size() > 1,
            parallel_output=parallel_output,
        )

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[s, b, h] -> ([s, b, h], bias still to be added or None)."""
        intermediate, _ = self.linear1(hidden)
        return self.linear2(self.activation(intermediate))

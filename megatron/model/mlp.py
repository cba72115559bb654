"""The feed-forward half of a block."""

from collections.abc import Callable

import torch

from megatron import mpu
from megatron.model.activations import get_activation
from megatron.mpu.parameters import InitMethod
from megatron.neox_arguments.mlp_sizes import mlp_sizes


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
        sizes = mlp_sizes(neox_args, multiple_of)
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

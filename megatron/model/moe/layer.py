"""The feed-forward half of a block as a mixture of experts.

Legend: s sequence, b batch, h hidden size, tp tensor-parallel degree.
"""

import torch

from megatron import mpu
from megatron.model.moe.balance import LoadBalance
from megatron.model.moe.experts import ParallelDroplessMLP
from megatron.mpu.layers import reduce_partial
from megatron.mpu.parameters import InitMethod
from megatron.registry import lookup


class ParallelDroplessMoE(torch.nn.Module):
    """Every token gives its place to the weighted sum of what moe_top_k of moe_num_experts MLPs make of it.

    Between the entry and the exit every tensor-parallel rank works on all tokens: it routes them all, alike, and passes
    on those of its own experts. All gradients in there are summands of the ranks.

    Args: parallel_output: leave the output unsummed (see RowParallelLinear).
    """

    def __init__(
        self,
        neox_args,
        init_method: InitMethod,
        output_layer_init_method: InitMethod,
        parallel_output: bool = False,
    ):
        super().__init__()
        self.parallel_output = parallel_output
        self.sequence_parallel = neox_args.sequence_parallel
        self.router = lookup("router", neox_args.moe_router_type)(
            neox_args.hidden_size,
            neox_args.moe_num_experts,
            neox_args.moe_top_k,
            init_method,
            normalize=neox_args.moe_normalize_topk,
            jitter=neox_args.moe_jitter_eps,
        )
        self.experts = ParallelDroplessMLP(neox_args, init_method, output_layer_init_method)
        self.balance = LoadBalance(
            neox_args.moe_aux_loss_coeff, neox_args.moe_z_loss_coeff, neox_args.moe_lbl_in_fp32
        )

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[s, b, h] ([s/tp, b, h] with sequence parallelism) -> (the same, None: there is no bias)."""
        if self.sequence_parallel:
            hidden = mpu.gather_from_sequence_parallel_region(hidden)
        else:
            hidden = mpu.copy_to_model_parallel_region(hidden)
        tokens = hidden.flatten(0, 1)
        routing = self.router(tokens)
        output = self.experts(tokens, routing.weights, routing.experts)
        # Activation checkpointing runs this twice, once of it with gradients.
        if self.training and torch.is_grad_enabled():
            output = self.balance(output, routing)
        output = output.view_as(hidden)
        return output if self.parallel_output else reduce_partial(output, self.sequence_parallel), None

"""Every token goes to the experts that score highest (arXiv 1701.06538, 2101.03961)."""

import torch

from megatron.model.moe.routers.base import NO_MUP, Router
from megatron.registry import register


@register(
    "router",
    "topk",
    lacks=NO_MUP,
    example={"moe_num_experts": 4, "moe_top_k": 2, "moe_aux_loss_coeff": 0.01, "moe_z_loss_coeff": 0.001},
)
class TopKTokenChoiceRouter(Router):
    """The weights are the softmax over all experts at the chosen ones. Balance is left to the auxiliary loss."""

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, experts = torch.topk(torch.softmax(logits, dim=-1), self.top_k, dim=-1)
        return weights, experts

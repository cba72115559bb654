"""In training every expert gets about as many tokens as any other, by Sinkhorn's normalisation (arXiv 1306.0895,
for routing 2202.01169)."""

import torch

from megatron.model.moe.routers.base import NO_MUP, Router
from megatron.registry import register

# exp of larger scores would leave fp32 when summed over tokens; the plan does not depend on a common shift.
LARGEST_COST = 60.0
SMALLEST_SUM = 1e-8


def sinkhorn(cost: torch.Tensor, tol: float = 1e-4, max_iter: int = 3) -> torch.Tensor:
    """Transport plan fp32 [T, E] of scores [T, E]: exp(cost) with rows and columns scaled towards equal sums.

    Stops, without asking the device, once the mean change of the column factors is at most `tol`.
    """
    cost = cost.float()
    cost = torch.exp(cost - (cost.max() - LARGEST_COST).clamp(min=0.0))
    tokens, experts = cost.shape
    columns = 1.0 / (experts * cost.sum(dim=0))
    rows = torch.ones_like(cost[:, 0])
    running = torch.ones((), dtype=torch.bool, device=cost.device)
    for _ in range(max_iter):
        new_rows = (1.0 / tokens) / ((columns * cost).sum(dim=1) + SMALLEST_SUM)
        new_columns = (1.0 / experts) / ((new_rows.unsqueeze(1) * cost).sum(dim=0) + SMALLEST_SUM)
        change = (new_columns - columns).abs().mean()
        rows = torch.where(running, new_rows, rows)
        columns = torch.where(running, new_columns, columns)
        running = running & (change > tol)
    return columns * cost * rows.unsqueeze(1)


@register("router", "sinkhorn", lacks=NO_MUP, example={"moe_num_experts": 4})
class SinkhornRouter(Router):
    """In training the balanced plan chooses; the weights are the sigmoid (one expert per token) or the softmax (more)
    of the scores at the chosen experts. Otherwise, when tokens come one by one, the highest of those weights choose.

    The plan balances the tokens of one data-parallel replica's micro-batch, so a routing in training depends on how
    the batch is divided.
    """

    sinkhorn = staticmethod(sinkhorn)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.sigmoid(logits) if self.top_k == 1 else torch.softmax(logits, dim=-1)
        with torch.no_grad():
            preference = sinkhorn(logits) if self.training else scores
            experts = torch.topk(preference, self.top_k, dim=-1).indices
        return scores.gather(1, experts), experts

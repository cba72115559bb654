"""What all routers share: one score per token and expert, and the experts that a token is sent to.

Legend: T tokens, E experts, k experts per token, h hidden size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.mpu.parameters import InitMethod

# What routers lack.
NO_MUP = {
    "maximal update parametrisation": "the scores of experts would need a scale of their own in wide models"
}


class Routing(NamedTuple):
    """Where tokens go. logits: fp32 [T, E]; weights: fp32 [T, k], of the experts' outputs; experts: int64 [T, k]."""

    logits: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor


class RouterLinear(torch.nn.Module):
    """Scores of the experts. Parameter: weight [E, h] on every rank.

    Every tensor-parallel rank scores all tokens, but its gradient has passed through its own experts only: the sum
    over the ranks makes it whole.
    """

    def __init__(self, hidden_size: int, experts: int, init_method: InitMethod):
        super().__init__()
        self.weight = mpu.make_parameter(mpu.ParameterSpec((experts, hidden_size), init_method))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T, h] -> [T, E]."""
        return F.linear(tokens, mpu.copy_to_model_parallel_region(self.weight))


class Router(torch.nn.Module):
    """Chooses top_k experts for every token. A choice supplies `choose`.

    Args:
        normalize: scale the weights of a token so that their sum is 1.
        jitter: relative noise on the input in training; None for none.
    """

    def __init__(
        self,
        hidden_size: int,
        experts: int,
        top_k: int,
        init_method: InitMethod,
        normalize: bool = False,
        jitter: float | None = None,
    ):
        super().__init__()
        self.top_k, self.normalize, self.jitter = top_k, normalize, jitter
        self.layer = RouterLinear(hidden_size, experts, init_method)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 [T, E] -> (weights fp32, experts int64), each [T, k]."""
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor) -> Routing:
        """tokens: [T, h], the same on all tensor-parallel ranks, whose routings are then equal to the last bit."""
        if self.jitter and self.training:
            # The default generator is in the same state on all tensor-parallel ranks.
            tokens = tokens * torch.empty_like(tokens).uniform_(1.0 - self.jitter, 1.0 + self.jitter)
        logits = self.layer(tokens).float()
        weights, experts = self.choose(logits)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(logits, weights, experts)

"""A mixture of gated experts equals Hugging Face's MixtralSparseMoeBlock."""

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from megatron.model.moe import ParallelDroplessMoE
from tests.common.models import model_args

HIDDEN, WIDTH, EXPERTS = 24, 36, 6


def normal_(tensor, generator=None):
    return tensor.normal_(std=0.3, generator=generator)


def reference(own: ParallelDroplessMoE, top_k: int) -> MixtralSparseMoeBlock:
    config = MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_local_experts=EXPERTS,
        num_experts_per_tok=top_k,
        hidden_act="silu",
        experts_implementation="eager",
    )
    block = MixtralSparseMoeBlock(config)
    w1, w2, w3 = (getattr(own.experts.mlp, name).view(EXPERTS, WIDTH, HIDDEN) for name in ("w1", "w2", "w3"))
    with torch.no_grad():
        block.gate.weight.copy_(own.router.layer.weight)
        block.experts.gate_up_proj.copy_(torch.cat([w1, w3], dim=1))
        block.experts.down_proj.copy_(w2.transpose(1, 2))
    return block


@pytest.mark.parametrize("top_k", [2, 3])
def test_output_and_gradients_equal_mixtral(top_k):
    torch.manual_seed(0)
    args = model_args(
        hidden_size=HIDDEN,
        activation="swiglu",
        ffn_hidden_size=WIDTH,
        moe_num_experts=EXPERTS,
        moe_top_k=top_k,
        moe_router_type="topk",
        moe_normalize_topk=True,
    )
    own = ParallelDroplessMoE(args, normal_, normal_)
    theirs = reference(own, top_k)
    hidden = torch.randn(5, 7, HIDDEN)  # both flatten the first two dimensions
    inputs = [hidden.clone().requires_grad_() for _ in range(2)]
    output, expected = own(inputs[0])[0], theirs(inputs[1])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for result in (output, expected):
        result.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.router.layer.weight.grad, theirs.gate.weight.grad, rtol=1e-3, atol=1e-4)
    own_w2 = own.experts.mlp.w2.grad.view(EXPERTS, WIDTH, HIDDEN).transpose(1, 2)
    torch.testing.assert_close(own_w2, theirs.experts.down_proj.grad, rtol=1e-4, atol=1e-4)

import pytest

from megatron.model import build_sequential
from megatron.planning.layers import count_layers, total_parameters
from tests.common.models import model_args


@pytest.mark.parametrize("activation, matrices", [("gelu", 2), ("swiglu", 3)])
def test_the_plan_counts_all_experts(activation, matrices):
    sizes = {"ffn_hidden_size": 40, "activation": activation}
    dense, mixture = model_args(**sizes), model_args(**sizes, moe_num_experts=4, moe_expert_interval=2)
    total = total_parameters(count_layers(mixture))
    assert total == sum(parameter.numel() for parameter in build_sequential(mixture).parameters())
    # One of the two layers: four experts without biases and a router in place of an MLP with biases.
    biases = 40 * (matrices - 1) + 24
    assert total - total_parameters(count_layers(dense)) == 3 * matrices * 40 * 24 + 4 * 24 - biases


def test_tensor_parallel_ranks_hold_their_experts():
    whole = model_args(moe_num_experts=4, ffn_hidden_size=40)
    cut = model_args(moe_num_experts=4, ffn_hidden_size=40, model_parallel_size=2)
    block, part = (
        next(layer for layer in count_layers(args) if "Transformer" in layer.name) for args in (whole, cut)
    )
    assert part.size == block.size
    replicated = 4 * 24 + 24 + 4 * 24  # norms, bias of the attention's output, router
    assert sum(part.local.values()) == (block.size - replicated) // 2 + replicated

import pytest

from megatron.common.errors import ConfigError
from megatron.neox_arguments.experts import expert_width, has_experts
from tests.common.models import model_args


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, 256),  # 4 x 24, rounded up to 256
        ({"hidden_size": 768}, 3072),
        ({"intermediate_size": 300}, 512),
        ({"intermediate_size": 300, "mlp_multiple_of": 50}, 300),
        ({"ffn_hidden_size": 75}, 75),
        ({"ffn_hidden_size": 75, "activation": "swiglu"}, 75),
        ({"expansion_factor": 2.0, "mlp_multiple_of": 12}, 48),
    ],
)
def test_golden_widths(settings, expected):
    assert expert_width(model_args(moe_num_experts=4, **settings)) == expected


def test_layers_at_the_interval_have_experts():
    args = model_args(moe_num_experts=2, moe_expert_interval=3)
    assert [has_experts(args, layer) for layer in range(7)] == [True, False, False, True, False, False, True]
    assert not has_experts(model_args(), 0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"moe_num_experts": 3, "model_parallel_size": 2}, "must be a multiple of model_parallel_size=2"),
        ({"moe_num_experts": 2, "moe_top_k": 3}, "moe_top_k=3 exceeds moe_num_experts=2"),
        ({"moe_num_experts": 0}, "moe_num_experts=0 must be above 0"),
        ({"moe_num_experts": 4, "moe_expert_interval": 0}, "moe_expert_interval=0 must be above 0"),
        ({"moe_num_experts": 4, "moe_aux_loss_coeff": -1.0}, "moe_aux_loss_coeff=-1.0 must not be negative"),
        ({"moe_aux_loss_coeff": 0.1}, "moe_aux_loss_coeff=0.1 needs moe_num_experts above 1"),
        ({"moe_top_k": 2}, "moe_top_k=2 needs moe_num_experts above 1"),
        ({"moe_num_experts": 4, "moe_jitter_eps": 0.1}, "moe_jitter_eps=0.1 is noise for moe_router_type: topk"),
        ({"moe_num_experts": 4, "moe_router_type": "topk", "moe_jitter_eps": 1.5}, "moe_jitter_eps=1.5 must be"),
        ({"moe_num_experts": 4, "moe_normalize_topk": True}, "set moe_top_k above 1"),
        ({"moe_num_experts": 4, "attention_config": [[["mamba"], "all"]]}, "gives experts to no layer"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_its_keys(settings, message):
    with pytest.raises(ConfigError) as problem:
        model_args(**settings)
    assert message in str(problem.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"moe_num_experts": 2, "moe_top_k": 2, "moe_normalize_topk": True},
        {"moe_num_experts": 4, "model_parallel_size": 2, "moe_router_type": "topk", "moe_jitter_eps": 0.1},
        {"moe_num_experts": 4, "num_layers": 3, "attention_config": ["mamba", "global", "mamba"]},
    ],
)
def test_what_can_work_is_accepted(settings):
    assert model_args(**settings).moe_num_experts == settings["moe_num_experts"]

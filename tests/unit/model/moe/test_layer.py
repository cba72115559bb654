import pytest
import torch

from megatron.model import build_sequential, get_params_for_weight_decay_optimization
from megatron.model.moe import ParallelDroplessMoE
from tests.common.models import inputs_and_targets, model_args, randomize

SETTINGS = {
    "moe_num_experts": 4,
    "moe_top_k": 2,
    "moe_router_type": "topk",
    "ffn_hidden_size": 32,
}


def loss_of(model, seed=0):
    inputs, (labels, _) = inputs_and_targets(seed=seed)
    return torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())


def build(**settings):
    model = build_sequential(model_args(**{**SETTINGS, **settings}))
    randomize(model)
    return model


def mixtures(model):
    return [module for module in model.modules() if isinstance(module, ParallelDroplessMoE)]


def auxiliary_losses(routings, experts, top_k):
    """(balance loss, z-loss), each summed over the layers, spelled out."""
    balance = z_loss = 0.0
    for routing in routings:
        probability = routing.logits.softmax(-1).mean(0)
        share = torch.stack([(routing.experts == e).sum() for e in range(experts)]) / (
            len(routing.logits) * top_k
        )
        balance = balance + experts * sum(share[e] * probability[e] for e in range(experts))
        z_loss = z_loss + (routing.logits.exp().sum(-1).log() ** 2).mean()
    return balance, z_loss


@pytest.mark.parametrize("router", ["topk", "sinkhorn"])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_gradients_are_those_of_the_loss_with_the_auxiliary_losses_added(router, scale):
    plain = build(moe_router_type=router)
    routings = []
    for mixture in mixtures(plain):
        mixture.router.register_forward_hook(lambda _module, _inputs, routing: routings.append(routing))
    main = loss_of(plain)
    balance, z_loss = auxiliary_losses(routings, 4, 2)
    (scale * (main + 0.3 * balance + 0.05 * z_loss)).backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}

    model = build(moe_router_type=router, moe_aux_loss_coeff=0.3, moe_z_loss_coeff=0.05)
    for mixture in mixtures(model):
        mixture.balance.loss_scale = lambda: scale
    own_main = loss_of(model)
    (scale * own_main).backward()
    torch.testing.assert_close(own_main, main)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * scale)


def test_without_coefficients_the_maths_is_gpt_neox_ones():
    weight = mixtures(build())[0].router.layer.weight
    for coefficients, same in (
        ({}, True),
        ({"moe_aux_loss_coeff": 0.1}, False),
        ({"moe_z_loss_coeff": 0.1}, False),
    ):
        gradients = []
        for settings in ({}, coefficients):
            model = build(**settings)
            loss_of(model).backward()
            gradients.append(mixtures(model)[0].router.layer.weight.grad)
        assert torch.equal(*gradients) == same
        assert gradients[0].shape == weight.shape


def test_recomputation_counts_auxiliary_losses_once():
    results = []
    for settings in ({}, {"checkpoint_activations": True}):
        model = build(moe_aux_loss_coeff=0.5, moe_z_loss_coeff=0.1, **settings)
        loss_of(model).backward()
        totals = [mixture.balance.take() for mixture in mixtures(model)]
        results.append(({name: p.grad for name, p in model.named_parameters()}, totals))
    (plain, seen), (recomputed, seen_again) = results
    torch.testing.assert_close(recomputed, plain)
    torch.testing.assert_close(seen_again, seen)
    assert all(total[-1] == 1 for total in seen)


def test_the_totals_are_the_losses_and_the_largest_share():
    model = build()
    routings = []
    for mixture in mixtures(model):
        mixture.router.register_forward_hook(lambda _module, _inputs, routing: routings.append(routing))
    for seed in range(3):
        loss_of(model, seed)
    for index, mixture in enumerate(mixtures(model)):
        own = routings[index :: len(mixtures(model))]
        balance, z_loss = auxiliary_losses(own, 4, 2)
        load = sum(routing.experts.flatten().bincount(minlength=4).max() / 48 * 4 for routing in own)
        torch.testing.assert_close(
            mixture.balance.take().tolist(), [balance.item(), z_loss.item(), load.item(), 3.0]
        )
        assert mixture.balance.take() is None


def test_evaluation_leaves_the_totals_alone():
    model = build().eval()
    loss_of(model)
    with torch.no_grad():
        loss_of(model.train())
    assert all(mixture.balance.take() is None for mixture in mixtures(model))


@pytest.mark.parametrize("in_fp32", [False, True])
def test_the_balance_is_computed_in_the_number_format_asked_for(in_fp32):
    model = build(precision="bfloat16", moe_lbl_in_fp32=in_fp32).to(torch.bfloat16)
    loss_of(model)
    balance = mixtures(model)[0].balance.take()[0]
    assert torch.equal(balance, balance.bfloat16().float()) != in_fp32


def test_every_interval_th_layer_has_experts():
    model = build(num_layers=5, moe_expert_interval=2)
    with_experts = [
        isinstance(layer.mlp, ParallelDroplessMoE) for layer in model.sequential if hasattr(layer, "mlp")
    ]
    assert with_experts == [True, False, True, False, True]


def test_names_and_shapes_are_gpt_neox_ones():
    shapes = {name: tuple(value.shape) for name, value in build().sequential[2].mlp.state_dict().items()}
    assert shapes == {
        "router.layer.weight": (4, 24),
        "experts.mlp.w1": (128, 24),
        "experts.mlp.w2": (128, 24),
    }


def test_experts_and_routers_decay_as_matrices():
    model = build(weight_decay=0.1)
    groups = get_params_for_weight_decay_optimization(model, model_args(**SETTINGS, weight_decay=0.1))
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    assert groups[0]["name"] == "weight_decay_params"
    assert all(id(parameter) in decayed for mixture in mixtures(model) for parameter in mixture.parameters())


@pytest.mark.parametrize("router", ["topk", "sinkhorn"])
def test_a_token_is_routed_alone_as_in_a_batch(router):
    """What cached generation depends on."""
    mixture = mixtures(build(moe_router_type=router).eval())[0]
    hidden = torch.randn(7, 3, 24)
    one_by_one = torch.cat([mixture(step)[0] for step in hidden.split(1)])
    torch.testing.assert_close(one_by_one, mixture(hidden)[0])

"""Every optimizer against its formula, written once more in plain fp64, and through interruptions."""

import importlib.util
import math
import sys

import pytest
import torch

from megatron import registry
from megatron.common import device
from megatron.common.errors import ConfigError, MissingPackageError
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.features import check_features
from megatron.optimizers import SM3, Lion, build_optimizer, madgrad_wd
from tests.unit.neox_arguments.basic import minimal

SHAPES = [(5, 3), (4,), (), (2, 3, 4)]
STEPS = 6


def gradient(step: int, number: int, shape: tuple) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + number)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def start(dtype=torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(gradient(99, number, shape).to(dtype)) for number, shape in enumerate(SHAPES)]


def run(optimizer, parameters, first: int = 0, last: int = STEPS) -> None:
    for step in range(first, last):
        for number, parameter in enumerate(parameters):
            parameter.grad = gradient(step, number, parameter.shape).to(parameter.dtype)
        optimizer.step()


def reference(update, state=None) -> list[torch.Tensor]:
    """Parameters after all steps of `update(p, g, state, step)` -> new p, one value of a flat list after the other."""
    found = []
    for number, shape in enumerate(SHAPES):
        value, kept = gradient(99, number, shape), {}
        for step in range(STEPS):
            value = update(value, gradient(step, number, shape), kept, step)
        found.append(value)
    return found


def assert_follows(optimizer, parameters, expected) -> None:
    run(optimizer, parameters)
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lion_follows_its_formula(decay):
    def update(p, g, kept, step):
        m = kept.get("m", torch.zeros_like(p))
        kept["m"] = 0.98 * m + 0.02 * g
        return p * (1 - 0.01 * decay) - 0.01 * torch.sign(0.9 * m + 0.1 * g)

    parameters = start()
    optimizer = Lion(parameters, lr=0.01, betas=(0.9, 0.98), weight_decay=decay)
    assert_follows(optimizer, parameters, reference(update))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_madgrad_follows_its_formula(momentum, decay):
    rate, eps = 0.02, 1e-6

    def update(p, g, kept, step):
        weight = (rate + eps) * math.sqrt(step + 1)
        squares, total = kept.get("G", torch.zeros_like(p)), kept.get("s", torch.zeros_like(p))
        first = kept.setdefault("x0", p)
        p = p * (1 - (rate + eps) * decay)
        if momentum == 0:
            first = p + total / (squares ** (1 / 3) + eps)
        kept["G"], kept["s"] = squares + weight * g * g, total + weight * g
        z = first - kept["s"] / (kept["G"] ** (1 / 3) + eps)
        return momentum * p + (1 - momentum) * z

    parameters = start()
    optimizer = madgrad_wd(parameters, lr=rate, momentum=momentum, weight_decay=decay, eps=eps)
    assert_follows(optimizer, parameters, reference(update))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_sm3_follows_its_formula_element_by_element(momentum, beta):
    def update(p, g, kept, step):
        shape = p.shape or (1,)
        p, g = p.reshape(shape), g.reshape(shape)
        covers = kept.setdefault("covers", [[0.0] * length for length in shape])
        new = [list(cover) for cover in covers] if beta else [[0.0] * length for length in shape]
        direction = torch.empty_like(g)
        for index in torch.cartesian_prod(*[torch.arange(length) for length in shape]).view(-1, len(shape)):
            index = tuple(index.tolist())
            bound = min(cover[i] for cover, i in zip(covers, index, strict=True))
            square = float(g[index]) ** 2
            moment = beta * bound + (1 - beta) * square if beta else bound + square
            for cover, i in zip(new, index, strict=True):
                cover[i] = max(cover[i], moment)
            direction[index] = g[index] / math.sqrt(moment + 1e-30)
        kept["covers"] = new
        if momentum:
            before = kept.get("d", torch.zeros_like(direction))
            direction = (1 - momentum) * direction + momentum * before
            kept["d"] = direction
        return (p * (1 - 0.01 * 0.1) - 0.01 * direction).reshape(g.shape)

    parameters = start()
    optimizer = SM3(parameters, lr=0.01, momentum=momentum, beta=beta, weight_decay=0.1)
    expected = [value.view(shape) for value, shape in zip(reference(update), SHAPES, strict=True)]
    assert_follows(optimizer, parameters, expected)


def kinds() -> list[str]:
    return registry.names("optimizer")


def build(kind: str, parameters: list, **params):
    params = {**registry.entry("optimizer", kind).example.get("optimizer", {}).get("params", {}), **params}
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
    return build_optimizer(kind, groups, {"lr": 1e-2, **params}, weight_decay=0.1)


@pytest.mark.parametrize("kind", kinds())
def test_an_interrupted_optimizer_goes_on_bit_for_bit(kind, tmp_path):
    straight, stopped = start(torch.float32), start(torch.float32)
    run(build(kind, straight), straight)
    optimizer = build(kind, stopped)
    run(optimizer, stopped, 0, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = [torch.nn.Parameter(parameter.detach().clone()) for parameter in stopped]
    again = build(kind, resumed)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(again, resumed, 3)
    for parameter, other in zip(straight, resumed, strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("kind", kinds())
def test_a_parameter_without_gradient_stays_and_the_others_do_not_mind(kind):
    parameters, alone = start(torch.float32), start(torch.float32)[1:]
    before = parameters[0].detach().clone()
    optimizer, other = build(kind, parameters), build(kind, alone)
    for step in range(2):
        for number, parameter in enumerate(parameters[1:], start=1):
            parameter.grad = gradient(step, number, parameter.shape).float()
            alone[number - 1].grad = parameter.grad.clone()
        optimizer.step(), other.step()
    assert torch.equal(parameters[0], before)
    assert torch.equal(parameters[1], alone[0])


@pytest.mark.parametrize("kind", kinds())
def test_every_optimizer_makes_a_loss_fall(kind):
    parameter = torch.nn.Parameter(torch.full((4, 6), 3.0))
    optimizer = build(
        kind, [parameter, torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(()))]
    )
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (parameter - 1).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", kinds())
def test_the_configs_weight_decay_acts_on_the_first_group_only(kind):
    zero, plain = start(torch.float32), start(torch.float32)
    decayed = build(kind, zero)
    undecayed = build(kind, plain)
    for group in undecayed.param_groups:
        group["weight_decay"] = 0.0
    run(decayed, zero, 0, 2)
    run(undecayed, plain, 0, 2)
    acts = registry.capabilities("optimizer", kind).weight_decay
    assert (not torch.equal(zero[0], plain[0])) is acts
    assert torch.equal(zero[2], plain[2])


def test_params_weight_decay_wins_over_the_configs():
    (group, *_) = build("sm3", start(), weight_decay=0.5).param_groups
    assert group["weight_decay"] == 0.5
    (group, *_) = build("lion", start(), weight_decay=0.5).param_groups
    assert group["weight_decay"] == 0.5


@pytest.mark.parametrize(
    ("kind", "changes", "refusal"),
    [
        (
            "muon",
            {"zero_optimization": {"stage": 3}},
            "zero 3 (zero_optimization.stage: 3): it needs whole matrices",
        ),
        ("sm3", {"zero_optimization": {"stage": 3}}, "it needs the rows and columns of whole matrices"),
        ("onebitadam", {"zero_optimization": {"stage": 1}}, "onebitadam does not support zero 1"),
        ("onebitadam", {"precision": "bfloat16"}, "does not support 16-bit precision (precision)"),
    ],
)
def test_what_an_optimizer_cannot_be_combined_with_is_refused_with_keys(kind, changes, refusal):
    neox_args = NeoXArgs.from_dict(minimal(optimizer={"type": kind, "params": {}}, **changes))
    with pytest.raises(ConfigError) as caught:
        check_features(neox_args)
    assert refusal in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_decays_apart_from_the_gradient_unless_told_otherwise(decoupled):
    own, other = start(torch.float32), start(torch.float32)
    reference = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
        [{"params": other[:2]}, {"params": other[2:], "weight_decay": 0.0}], lr=1e-2, weight_decay=0.1
    )
    run(build("adam", own, adam_w_mode=decoupled), own)
    run(reference, other)
    for parameter, value in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "name", "instead"), [("adam", "FusedAdam", torch.optim.AdamW), ("lion", "FusedLion", Lion)]
)
def test_torch_takes_over_where_deepspeeds_kernels_cannot_be_compiled(
    kind, name, instead, monkeypatch, capsys
):
    def fused(*arguments, **settings):
        raise RuntimeError("Error building extension 'fused'\nand a page of compiler output")

    fused.__name__ = name
    monkeypatch.setattr(f"deepspeed.ops.{kind}.{name}", fused)
    monkeypatch.setattr(device, "has_accelerator", lambda: True)
    assert type(build(kind, start())) is instead
    reason = "cannot be compiled here (Error building extension 'fused'): torch's operations take its place"
    assert capsys.readouterr().out == f"DeepSpeed's {name} {reason}\n"


def test_one_bit_adam_is_adamw_until_it_freezes():
    own, other = start(torch.float32), start(torch.float32)
    run(build("onebitadam", own, freeze_step=100, lr=1e-2), own)
    run(build("adam", other), other)
    for parameter, value in zip(own, other, strict=True):
        torch.testing.assert_close(parameter, value, rtol=1e-5, atol=1e-6)


def test_one_bit_adam_keeps_the_second_moment_when_it_freezes():
    parameters = start(torch.float32)
    optimizer = build("onebitadam", parameters, freeze_step=3)
    run(optimizer, parameters, 0, 3)
    kept = optimizer.state[parameters[0]]["exp_avg_sq"].clone()
    run(optimizer, parameters, 3)
    assert torch.equal(optimizer.state[parameters[0]]["exp_avg_sq"], kept)


def test_eight_bit_states_without_bitsandbytes_name_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match="use_bnb_optimizer needs the package 'bitsandbytes'"):
        build_optimizer("adam", [{"params": start()}], {"lr": 1e-3}, 0.1, use_bnb_optimizer=True)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_eight_bit_states_follow_adamw_and_leave_embeddings_in_32_bits():
    def parameters():
        found = [torch.nn.Parameter(gradient(99, 0, (64, 128)).float()) for _ in range(2)]
        found[1].is_table = True
        return found

    own, other = parameters(), parameters()
    optimizer = build_optimizer("adam", [{"params": own}], {"lr": 1e-2}, 0.1, use_bnb_optimizer=True)
    run(optimizer, own)
    run(build_optimizer("adam", [{"params": other}], {"lr": 1e-2}, 0.1), other)
    kinds_of_states = {optimizer.state[parameter]["state1"].dtype for parameter in own}
    assert optimizer.state[own[0]]["state1"].dtype == torch.uint8
    assert kinds_of_states == {torch.uint8, torch.float32}
    torch.testing.assert_close(own[1], other[1], rtol=1e-4, atol=1e-5)
    assert (own[0] - other[0]).abs().mean() < 0.1 * 1e-2 * STEPS

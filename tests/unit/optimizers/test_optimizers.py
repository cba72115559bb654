"""Every optimizer against its formula, written once more in plain fp64, and through interruptions."""

import copy
import math

import pytest
import torch

from megatron import registry
from megatron.optimizers import SM3, Lion, build_optimizer, madgrad_wd

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
        losses.append(float(loss))
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
    assert copy.copy(build("lion", start(), weight_decay=0.5).param_groups[0]["weight_decay"]) == 0.5

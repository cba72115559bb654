"""Optimizer states are set as the optimizer itself would have left them."""

from types import SimpleNamespace

import pytest
import torch

from megatron.checkpointing.engine_states import EngineStates
from megatron.checkpointing.saved_optimizer import MASTER
from megatron.common.errors import CheckpointError


class CountingAdam(torch.optim.Optimizer):
    """Keeps its step as a plain number, as fused Adam does."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state.setdefault("step", 0)
                state.setdefault("exp_avg", torch.zeros_like(parameter))
                state["step"] += 1


def stepped(kind, count: int, **settings):
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = kind([parameter], **settings)
    for number in range(count):
        parameter.grad = torch.full_like(parameter, number + 1.0)
        optimizer.step()
    return parameter, optimizer


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {"momentum": 0.9, "lr": 0.1}),
        (CountingAdam, {}),
    ],
)
def test_a_fresh_optimizer_becomes_one_that_has_stepped(kind, settings):
    reference, original = stepped(kind, 3, **settings)
    parameter, optimizer = stepped(kind, 0, **settings)
    states = EngineStates(SimpleNamespace(optimizer=optimizer), 3)
    kept = original.state[reference]
    assert states.kinds == {name for name, value in kept.items() if getattr(value, "shape", None) == (2, 3)}
    for name in states.kinds:
        states.put(parameter, name, kept[name])
    with torch.no_grad():
        parameter.copy_(reference)
    assert optimizer.state[parameter].keys() == kept.keys()
    for taken in (parameter, reference):
        taken.grad = torch.ones_like(taken)
    optimizer.step(), original.step()
    assert torch.equal(parameter, reference)
    for name, value in kept.items():
        assert type(optimizer.state[parameter][name]) is type(value)
        assert torch.as_tensor(optimizer.state[parameter][name] == value).all()


def test_states_of_another_optimizer_are_refused_by_name():
    states = EngineStates(SimpleNamespace(optimizer=stepped(torch.optim.AdamW, 0)[1]), 3)
    states.check({MASTER, "exp_avg", "exp_avg_sq"}, "x")
    with pytest.raises(CheckpointError, match="keeps momentum_buffer .* AdamW needs exp_avg, exp_avg_sq"):
        states.check({MASTER, "momentum_buffer"}, "the optimizer in x")

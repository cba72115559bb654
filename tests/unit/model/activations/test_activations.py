"""All activations against their formulas, the fused gates against their plain twins."""

import math
import sys
from types import ModuleType

import pytest
import torch

from megatron.common.errors import MissingPackageError
from megatron.model.activations import Gated_Activation, get_activation, mish, swish
from megatron.model.activations.gated import GATES, _Gated, gated_eager
from tests.common.models import model_args

X = torch.linspace(-5, 5, 41, dtype=torch.double)
FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "softsign": lambda x: x / (1 + x.abs()),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
}
OF_GATES = {
    "geglu": FORMULAS["gelu"],
    "reglu": FORMULAS["relu"],
    "swiglu": FORMULAS["silu"],
    "glu": lambda gate: 1 / (1 + torch.exp(-gate)),
    "bilinear": lambda gate: gate,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula(name):
    function, gated = get_activation(model_args(activation=name))
    assert not gated
    torch.testing.assert_close(function(X), FORMULAS[name](X))


@pytest.mark.parametrize("keys", [{}, {"onnx_safe": True}])
@pytest.mark.parametrize("name", OF_GATES)
def test_a_gated_activation_is_its_formula(name, keys):
    function, gated = get_activation(model_args(activation=name, ffn_hidden_size=8, **keys))
    assert gated
    x, gate = torch.randn(2, 3, 41, dtype=torch.double)
    torch.testing.assert_close(function(torch.cat((x, gate), -1)), OF_GATES[name](gate) * x)


@pytest.mark.parametrize("name", GATES)
def test_a_fused_gate_equals_its_plain_twin(name):
    both = torch.randn(3, 4, 10, dtype=torch.double, requires_grad=True)
    weights = torch.randn(3, 4, 5, dtype=torch.double)
    outputs, gradients = [], []
    for function in (
        lambda: _Gated.apply(both, GATES[name]),
        lambda: gated_eager(both, GATES[name].activate),
    ):
        outputs.append(function())
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), both)[0])
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)


def test_a_fused_gate_keeps_nothing_but_its_input():
    kept = []
    both = torch.randn(4, 10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        _Gated.apply(both, GATES["swiglu"])
    assert [tensor.data_ptr() for tensor in kept] == [both.data_ptr()]


def test_functions_under_their_old_names():
    torch.testing.assert_close(swish(X), FORMULAS["swish"](X))
    torch.testing.assert_close(swish(X, beta=2.0), X / (1 + torch.exp(-2 * X)))
    torch.testing.assert_close(mish(X), FORMULAS["mish"](X))
    both = torch.randn(4, 10)
    torch.testing.assert_close(Gated_Activation(torch.tanh)(both), both[:, :5] * both[:, 5:].tanh())


def test_the_kernel_of_flash_attn_gets_the_gate_first(monkeypatch):
    calls = []

    def swiglu(gate, x):
        calls.append(gate)
        return torch.nn.functional.silu(gate) * x

    for name in ("flash_attn", "flash_attn.ops", "flash_attn.ops.activations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["flash_attn.ops.activations"].swiglu = swiglu
    args = model_args(activation="swiglu", ffn_hidden_size=8, use_flashattn_swiglu=True)
    both = torch.randn(4, 10)
    plain, _ = get_activation(model_args(activation="swiglu", ffn_hidden_size=8))
    torch.testing.assert_close(get_activation(args)[0](both), plain(both))
    assert len(calls) == 1


def test_without_flash_attn_its_kernel_is_refused():
    args = model_args(activation="swiglu", ffn_hidden_size=8, use_flashattn_swiglu=True)
    with pytest.raises(MissingPackageError, match="use_flashattn_swiglu.*requirements-flashattention.txt"):
        get_activation(args)

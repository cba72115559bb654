"""Activations, norms, the end of a residual branch."""

import pytest
import torch

from megatron.model.activations import bias_gelu_impl, erf_gelu, get_activation
from megatron.model.activations.gelu import bias_gelu_back
from megatron.model.fused_bias_dropout import bias_dropout_add, get_bias_dropout_add
from megatron.model.norms import LayerNorm, get_norm
from tests.common.models import model_args

POINTS = torch.tensor([-2, -1, -0.5, 0.5, 1, 2])
ERF = torch.tensor([-0.0455003, -0.1586553, -0.1542688, 0.3457312, 0.8413447, 1.9544997])
TANH = torch.tensor([-0.0454023, -0.1588080, -0.1542863, 0.3457140, 0.8411920, 1.9545977])


@pytest.mark.parametrize(
    "keys, expected", [({}, ERF), ({"onnx_safe": True}, ERF), ({"bias_gelu_fusion": True}, TANH)]
)
def test_golden_gelu(keys, expected):
    function, gated = get_activation(model_args(**keys))
    assert not gated
    torch.testing.assert_close(function(POINTS), expected, rtol=0, atol=1e-6)


def test_gelu_spelled_out_equals_the_operator():
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(erf_gelu(x), torch.nn.functional.gelu(x))


def test_bias_gelu_has_the_derivative_it_says():
    y = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    bias = torch.randn(4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(bias_gelu_impl, (y, bias))
    reference = torch.nn.functional.gelu(y + bias, approximate="tanh")
    torch.testing.assert_close(bias_gelu_impl(y, bias), reference)
    (expected,) = torch.autograd.grad(reference.sum(), y)
    torch.testing.assert_close(bias_gelu_back(torch.ones_like(y), bias, y), expected)


def test_golden_layernorm():
    norm, eps = get_norm(model_args(layernorm_epsilon=1e-12))
    expected = torch.tensor([-1.3416355, -0.4472118, 0.4472118, 1.3416355])
    torch.testing.assert_close(norm(4, eps=eps)(torch.tensor([1.0, 2, 3, 4])), expected, rtol=0, atol=1e-5)


def test_layernorm_epsilon_is_inside_the_root():
    x = torch.tensor([1.0, 2, 3, 4])
    torch.testing.assert_close(LayerNorm(4, eps=1.0)(x), (x - 2.5) / (1.25 + 1.0) ** 0.5)


def test_use_bias_in_norms_decides_whether_norms_have_biases():
    with_bias, _ = get_norm(model_args())
    without_bias, _ = get_norm(model_args(use_bias_in_norms=False))
    assert [name for name, _ in with_bias(4).named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in without_bias(4).named_parameters()] == ["weight"]


@pytest.mark.parametrize("bias", [None, torch.full((4,), 2.0)])
def test_dropout_happens_with_and_without_a_bias(bias):
    x, residual = torch.ones(1000, 4), torch.full((1000, 4), 10.0)
    kept = (1 + (0 if bias is None else 2)) / (1 - 0.25)
    dropped = bias_dropout_add(x, bias, residual, 0.25, training=True) - residual
    assert dropped.unique().tolist() == pytest.approx([0.0, kept])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    whole = get_bias_dropout_add(training=False)(x, bias, residual, 0.25)
    torch.testing.assert_close(whole, residual + x + (0 if bias is None else bias))

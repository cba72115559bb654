from types import SimpleNamespace

import pytest
import torch

from megatron import registry
from megatron.common.errors import ConfigError
from megatron.model.activations import get_activation
from megatron.model.activations.gated import GATES, gated_eager
from megatron.model.mlp import ParallelMLP
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.mlp_sizes import GATED_ACTIVATIONS, mlp_sizes
from tests.common.models import model_args
from tests.unit.neox_arguments.basic import minimal

GATED, PLAIN = "swiglu", "gelu"


def sizes(hidden, intermediate, multiple, activation, factor=None, literal=None):
    return mlp_sizes(
        SimpleNamespace(
            hidden_size=hidden,
            intermediate_size=intermediate,
            expansion_factor=factor,
            ffn_hidden_size=literal,
            mlp_multiple_of=multiple,
            activation=activation,
        )
    )


@pytest.mark.parametrize(
    "hidden, intermediate, multiple, activation, expected",
    [
        (4096, 32768, 256, GATED, (22016, 11008)),
        (5120, 41472, 256, GATED, (27648, 13824)),
        (8192, 86016, 256, GATED, (57344, 28672)),
        (4096, 14336, 14336, GATED, (28672, 14336)),
        (4096, None, 256, GATED, (11264, 5632)),
        (768, None, 1, PLAIN, (3072, 3072)),
        (768, None, 1, GATED, (2048, 1024)),
    ],
)
def test_golden_widths(hidden, intermediate, multiple, activation, expected):
    assert sizes(hidden, intermediate, multiple, activation) == expected


def test_expansion_factor_gives_the_width():
    assert sizes(24, None, 1, PLAIN, factor=3.5) == (84, 84)
    assert sizes(48, None, 1, GATED, factor=2.0) == (64, 32)


@pytest.mark.parametrize("activation, expected", [(PLAIN, (11008, 11008)), (GATED, (22016, 11008))])
def test_ffn_hidden_size_is_the_width_as_it_stands(activation, expected):
    assert sizes(4096, None, 1, activation, literal=11008) == expected


def test_mistral_is_accepted_under_both_ways_of_stating_its_width():
    for keys in ({"intermediate_size": 14336, "mlp_multiple_of": 14336}, {"ffn_hidden_size": 14336}):
        args = NeoXArgs.from_dict(minimal(activation="swiglu", **keys))
        assert mlp_sizes(args) == (28672, 14336)


def test_widths_that_disagree_are_refused_with_both_sizes():
    with pytest.raises(ConfigError, match="60 features come out of the first, 50 go into the second"):
        sizes(24, 45, 10, PLAIN)
    with pytest.raises(ConfigError, match="4779 features come out of the first, 4778 go into the second"):
        sizes(4096, 14336, 1, GATED)  # 9557 is odd
    with pytest.raises(ConfigError, match="MLP width 14336 .* ffn_hidden_size: 4778"):
        NeoXArgs.from_dict(minimal(activation="swiglu", intermediate_size=14336))


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {"ffn_hidden_size": 64, "intermediate_size": 64},
            "intermediate_size=64 and ffn_hidden_size=64 both set",
        ),
        (
            {"ffn_hidden_size": 64, "expansion_factor": 2.0},
            "expansion_factor=2.0 and ffn_hidden_size=64 both set",
        ),
        (
            {"ffn_hidden_size": 64, "mlp_multiple_of": 48},
            "taken literally, and is not a multiple of mlp_multiple_of=48",
        ),
        ({"ffn_hidden_size": 0}, "ffn_hidden_size=0 must be above 0"),
        (
            {"ffn_hidden_size": 63, "model_parallel_size": 2, "global_num_gpus": 2},
            "MLP width 63 must be a multiple of model_parallel_size=2",
        ),
        (
            {"ffn_hidden_size": 64, "attention_config": [[["mamba"], "all"]]},
            "attention_config names none",
        ),
        ({"use_flashattn_swiglu": True}, "use_flashattn_swiglu works on activation: swiglu only, not gelu"),
    ],
)
def test_widths_are_checked_before_a_run(keys, message):
    with pytest.raises(ConfigError, match=message):
        NeoXArgs.from_dict(minimal(**keys))


def test_the_gated_activations_are_those_that_halve_their_input():
    for name in registry.names("activation"):
        function, gated = get_activation(model_args(activation=name, ffn_hidden_size=8))
        assert function(torch.randn(3, 8)).shape[-1] == (4 if gated else 8), name
    assert set(GATES) == GATED_ACTIVATIONS


@pytest.mark.parametrize("activation", sorted(GATED_ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_mlp_multiplies_the_first_half_by_the_activated_second(activation, bias):
    def init(tensor, generator=None):
        return tensor.normal_()

    args = model_args(activation=activation, ffn_hidden_size=20, use_bias_in_mlp=bias)
    mlp = ParallelMLP(args, init, init, multiple_of=1)
    assert mlp.linear1.weight.shape == (40, 24) and mlp.linear2.weight.shape == (24, 20)
    x = torch.randn(5, 2, 24)
    if bias:
        torch.nn.init.normal_(mlp.linear1.bias)
    output, _ = mlp(x)
    first, gate = torch.nn.functional.linear(x, mlp.linear1.weight, mlp.linear1.bias).chunk(2, -1)
    inner = GATES[activation].activate(gate) * first
    torch.testing.assert_close(output, inner @ mlp.linear2.weight.T)
    both = torch.cat((first, gate), -1)
    torch.testing.assert_close(inner, gated_eager(both, GATES[activation].activate))


@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_linear_gelu_linear(bias):
    def init(tensor, generator=None):
        return tensor.normal_()

    args = model_args(use_bias_in_mlp=bias)
    mlp = ParallelMLP(args, init, init, multiple_of=args.mlp_multiple_of)
    assert (mlp.linear1.bias is not None) == (mlp.linear2.bias is not None) == bias
    x = torch.randn(5, 2, 24)
    if bias:
        torch.nn.init.normal_(mlp.linear1.bias)
        torch.nn.init.normal_(mlp.linear2.bias)
    output, skipped = mlp(x)
    inner = torch.nn.functional.linear(x, mlp.linear1.weight, mlp.linear1.bias)
    expected = torch.nn.functional.linear(
        torch.nn.functional.gelu(inner), mlp.linear2.weight, mlp.linear2.bias
    )
    assert skipped is None
    torch.testing.assert_close(output, expected)

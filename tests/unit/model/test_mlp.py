import pytest
import torch

from megatron.common.errors import ConfigError
from megatron.model.mlp import ParallelMLP, checked_mlp_sizes, mlp_sizes
from tests.common.models import model_args


@pytest.mark.parametrize(
    "hidden, intermediate, multiple, gated, expected",
    [
        (4096, 32768, 256, True, (22016, 11008)),
        (5120, 41472, 256, True, (27648, 13824)),
        (8192, 86016, 256, True, (57344, 28672)),
        (4096, 14336, 14336, True, (28672, 14336)),
        (4096, None, 256, True, (11264, 5632)),
        (4096, 14336, 1, True, (9558, 4778)),
        (768, None, 1, False, (3072, 3072)),
        (768, None, 1, True, (2048, 1024)),
    ],
)
def test_golden_widths(hidden, intermediate, multiple, gated, expected):
    assert mlp_sizes(hidden, intermediate, None, multiple, gated) == expected


def test_expansion_factor_gives_the_width():
    assert mlp_sizes(24, None, 3.5, 1, False) == (84, 84)


def test_widths_that_disagree_are_refused_with_both_sizes():
    args = model_args()
    args.intermediate_size = 45
    with pytest.raises(ConfigError, match="gives 60 features and its second takes 50"):
        checked_mlp_sizes(args, 10, gated=False)
    args.intermediate_size = 14336
    with pytest.raises(ConfigError, match="gives 4779 features and its second takes 4778"):
        checked_mlp_sizes(args, 1, gated=True)


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

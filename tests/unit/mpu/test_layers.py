"""Layers built on their own, outside of a model."""

import pytest
import torch

from megatron import mpu
from megatron.model.mup import Widths
from megatron.mpu.linear import answering, linear
from tests.common.distributed import run_distributed
from tests.common.models import model_args


def test_in_a_group_of_one_the_linear_layers_are_linear_layers():
    x = torch.randn(5, 2, 6)
    for layer in (mpu.ColumnParallelLinear(model_args(), 6, 8), mpu.RowParallelLinear(model_args(), 6, 8)):
        torch.nn.init.normal_(layer.bias)
        output, bias = layer(x)
        assert bias is None
        torch.testing.assert_close(output, torch.nn.functional.linear(x, layer.weight, layer.bias))
        layer.skip_bias_add = True
        output, bias = layer(x)
        assert bias is layer.bias
        torch.testing.assert_close(output, torch.nn.functional.linear(x, layer.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 6), (5, 2, 6), (4, 6), (0, 6)])
@pytest.mark.parametrize("biased", [True, False])
def test_answering_multiplies_with_other_kernels_and_gets_the_same(dtype, shape, biased):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in (shape, (8, 6), (8,)))
    arguments = (x.transpose(0, -2), weight, bias if biased else None)
    expected = torch.nn.functional.linear(*arguments)
    with answering(), torch.no_grad():
        torch.testing.assert_close(linear(*arguments), expected)
    assert linear(*arguments[:2], bias.requires_grad_()).requires_grad, (
        "the kernels are chosen for the block only"
    )


def test_without_a_bias_there_is_none():
    layer = mpu.ColumnParallelLinear(model_args(), 6, 8, bias=False)
    assert layer.bias is None and layer(torch.ones(1, 1, 6))[1] is None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_an_output_layer_is_rescaled_once_by_the_root_of_its_width():
    layer = mpu.ColumnParallelLinear(model_args(), 6, 8, mup_rescale_parameters=True)
    other = mpu.ColumnParallelLinear(model_args(), 6, 8)
    for found in (layer, other):
        found.weight.widths = Widths.of((8, 6), (None, 2))
        assert found.width_mult() == 3.0
    before = [layer.weight.clone(), other.weight.clone()]
    for _ in range(2):
        layer._rescale_parameters()
        other._rescale_parameters()
    torch.testing.assert_close(layer.weight, before[0] * 3**0.5)
    assert torch.equal(other.weight, before[1])


def test_weights_are_drawn_anew():
    layer = mpu.RowParallelLinear(model_args(), 6, 8)
    before = layer.weight.clone()
    layer.mup_reinitialize_weights(model_args())
    assert not torch.equal(layer.weight, before)
    assert layer.weight.std().item() == pytest.approx(before.std().item(), rel=0.5)
    assert layer.width_mult() == 1.0


def test_a_summand_with_a_bias_inside_is_a_programming_error():
    with pytest.raises(AssertionError, match="must not contain the bias"):
        mpu.RowParallelLinear(model_args(), 6, 8, parallel_output=True)


def on_two_ranks():
    """Outputs of every way to enter and leave a tensor-parallel region, beside those of the whole weight."""
    mpu.initialize_model_parallel(2)
    torch.manual_seed(3)
    args = model_args()
    x = torch.randn(5, 2, 6)
    results = {}
    for stride in (1, 2):
        column = mpu.ColumnParallelLinear(args, 6, 8, stride=stride, keep_master_weight_for_test=True)
        torch.nn.init.constant_(column.bias, 0.5)
        whole = torch.nn.functional.linear(x, column.master_weight) + 0.5
        if stride == 1:
            results["gathered"] = (column(x)[0], whole)
        column.set_parallel_output(True)
        own = mpu.local_slice(
            whole.movedim(-1, 0), column.weight.spec, mpu.get_model_parallel_rank(), 2
        ).movedim(0, -1)
        results[f"cut, stride {stride}"] = (column(x)[0], own)
    row = mpu.RowParallelLinear(args, 6, 8, skip_bias_add=True, keep_master_weight_for_test=True)
    torch.nn.init.constant_(row.bias, 0.25)
    whole = torch.nn.functional.linear(x, row.master_weight)
    results["summed, bias returned"] = (row(x)[0] + row(x)[1], whole + 0.25)
    row.set_parallel_output(True)
    results["summands"] = (mpu.reduce_from_model_parallel_region(row(x)[0]), whole)
    row.set_parallel_output(False)
    row.skip_bias_add = False
    results["summed, bias added"] = (row(x)[0], whole + 0.25)
    embedding = mpu.VocabParallelEmbedding(args, 10, 4)
    rows = mpu.gather_from_model_parallel_region(embedding.weight.t()).t()
    ids = torch.tensor([[0, 4, 5], [9, 1, 6]])
    results["embedding"] = (embedding(ids), rows[ids])
    return {name: tuple(part.detach() for part in pair) for name, pair in results.items()}


def test_layers_cut_over_two_ranks_compute_what_the_whole_weight_does():
    for rank in run_distributed(on_two_ranks, 2):
        assert len(rank) == 7
        for name, (found, expected) in rank.items():
            torch.testing.assert_close(found, expected, msg=name)

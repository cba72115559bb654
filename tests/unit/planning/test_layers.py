import pytest

from megatron.common.errors import ConfigError
from megatron.model import build_sequential
from megatron.model.layers import partition_method
from megatron.neox_arguments import NeoXArgs
from megatron.planning.layers import count_layers, stages, total_parameters
from megatron.planning.vocabulary import vocabulary
from tests.common.paths import ROOT
from tests.unit.neox_arguments.basic import minimal


def planned(**changes) -> NeoXArgs:
    args = NeoXArgs.from_dict(minimal(**changes))
    args.padded_vocab_size = 128
    return args


def test_a_rule_that_fits_no_layer_is_refused_before_deepspeed_meets_it():
    args = planned(pipe_partition_method="type:Conv")
    with pytest.raises(
        ConfigError, match=r"pipe_partition_method='type:Conv' fits none of the layers \(Embed"
    ):
        partition_method(args, [layer.name for layer in count_layers(args)])


@pytest.mark.parametrize("untied", [False, True])
def test_the_plan_counts_what_the_model_has(untied):
    args = planned(no_weight_tying=untied)
    model = build_sequential(args)
    assert total_parameters(count_layers(args)) == sum(p.numel() for p in model.parameters())


def test_20B_has_20_554_567_680_parameters():
    args = NeoXArgs.from_ymls([ROOT / "configs" / "20B.yml"], {"global_num_gpus": 96})
    args.padded_vocab_size, source = vocabulary(args)
    assert total_parameters(count_layers(args)) == 20_554_567_680
    assert args.padded_vocab_size == 50_432 and "assumed" in source


def test_tensor_parallel_ranks_hold_their_part():
    whole = count_layers(planned())
    cut = count_layers(planned(model_parallel_size=2, global_num_gpus=2))
    assert [layer.whole for layer in cut] == [layer.whole for layer in whole]
    # All of a block but the norms and the two row-parallel biases is cut.
    block = next(layer for layer in cut if "Transformer" in layer.name)
    replicated = 4 * 64 + 2 * 64
    assert sum(block.local.values()) == (block.size - replicated) // 2 + replicated


@pytest.mark.parametrize("method", ["type:transformer|mlp", "parameters", "uniform"])
def test_stages_hold_all_layers_once(method):
    layers = count_layers(planned(num_layers=6))
    divided = stages(layers, 3, method)
    assert len(divided) == 3 and sum(divided, []) == layers
    if method.startswith("type"):
        assert [sum("Transformer" in layer.name for layer in stage) for stage in divided] == [2, 2, 2]


def test_without_a_pipeline_there_is_one_stage():
    layers = count_layers(planned())
    assert stages(layers, 0, "uniform") == [layers]

"""Blocks that share their parameters (num_unique_layers)."""

import pytest
import torch

from megatron.common.errors import ConfigError
from megatron.model import build_sequential
from megatron.model.layers import block_spec
from megatron.model.sharing import FIRST_BLOCK, owning_layers
from megatron.planning.layers import count_layers, local_parameters, total_parameters
from tests.common.models import inputs_and_targets, model_args, randomize

STYLES = {"grouped": [0, 0, 1, 1], "spaced": [0, 1, 0, 1]}


def shared_args(style="grouped", **keys):
    return model_args(**{"num_layers": 4, "num_unique_layers": 2, "param_sharing_style": style, **keys})


def gradients(model):
    inputs, _ = inputs_and_targets()
    model(inputs).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.logical_named_parameters()}


def block_parameters(names):
    return {int(name.split(".")[0]) - FIRST_BLOCK for name in names} & set(range(4))


@pytest.mark.parametrize("style", STYLES)
def test_the_style_says_which_blocks_are_the_same(style):
    owners = owning_layers(shared_args(style))
    kinds = {owner: number for number, owner in enumerate(sorted(set(owners.values())))}
    assert [kinds[owners[FIRST_BLOCK + number]] for number in range(4)] == STYLES[style]
    model = build_sequential(shared_args(style))
    expected = set(STYLES[style].index(unique) for unique in (0, 1))
    assert block_parameters(name for name, _ in model.logical_named_parameters()) == expected


@pytest.mark.parametrize("style", STYLES)
def test_outputs_are_those_of_equal_layers_and_gradients_are_their_sum(style):
    """The reference has four blocks of their own with the same values."""
    shared = build_sequential(shared_args(style))
    randomize(shared)
    apart = build_sequential(model_args(num_layers=4))
    apart.load_state_dict(shared.state_dict())
    inputs, _ = inputs_and_targets()
    torch.testing.assert_close(shared(inputs), apart(inputs), rtol=0, atol=0)
    summed: dict[str, torch.Tensor] = {}
    owners = owning_layers(shared_args(style))
    for name, gradient in gradients(apart).items():
        index, path = name.split(".", 1)
        key = f"{owners.get(int(index), int(index))}.{path}"
        summed[key] = summed.get(key, 0) + gradient
    found = gradients(shared)
    assert found.keys() == summed.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, summed[name], rtol=1e-5, atol=1e-7)


def test_layers_with_the_same_parameters_have_caches_of_their_own():
    model = build_sequential(shared_args())
    randomize(model)
    (tokens, positions), _ = inputs_and_targets()
    model.inference_mode(use_cache=False)
    with torch.no_grad():
        whole = model((tokens, positions))
        model.inference_mode(use_cache=True)
        pieces = [model((tokens[:, a:b], positions[:, a:b])) for a, b in ((0, 5), (5, 6), (6, 12))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)
    numbers = [model.sequential[FIRST_BLOCK + number].attention.layer_number for number in range(4)]
    assert numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["global", "rwkv", "mamba", "gmlp"])
def test_initial_values_are_those_of_the_first_place_so_that_all_pipeline_stages_start_alike(kind):
    """Some values of RWKV follow from the number of the layer."""
    args = shared_args("spaced", attention_config=[[[kind], "all"]], hidden_size=32, pos_emb="none")
    blocks = []
    for number in (1, 3):
        torch.manual_seed(5)
        blocks.append(block_spec(args, number).build())
    for (name, first), (_, other) in zip(*(block.named_parameters() for block in blocks), strict=True):
        assert torch.equal(first, other), name


def test_a_state_dict_has_every_layer_so_that_tools_need_not_know_of_sharing():
    shared, apart = build_sequential(shared_args()), build_sequential(model_args(num_layers=4))
    assert shared.state_dict().keys() == apart.state_dict().keys()


def test_shared_parameters_are_counted_once():
    args = shared_args()
    layers = count_layers(args)
    assert total_parameters(layers) == sum(p.numel() for p in build_sequential(args).parameters())
    assert total_parameters(layers) < total_parameters(count_layers(model_args(num_layers=4)))
    assert local_parameters(layers[:4]) == layers[0].size + layers[2].size
    assert local_parameters(layers[3:5]) == 2 * layers[2].size


def test_activation_checkpointing_changes_no_gradient():
    found = []
    for recompute in (False, True):
        model = build_sequential(shared_args(checkpoint_activations=recompute))
        randomize(model)
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


@pytest.mark.parametrize("unique", [0, 3, 8])
def test_the_number_of_unique_layers_divides_the_layers(unique):
    with pytest.raises(
        ConfigError, match=f"num_unique_layers={unique} must be at least 1 and divide num_layers=4"
    ):
        shared_args(num_unique_layers=unique)


def test_blocks_of_different_kinds_cannot_share():
    args = shared_args(attention_config=[[["global", "mamba"], 2]])
    with pytest.raises(ConfigError, match="num_unique_layers lets blocks 0 and 1 share"):
        build_sequential(args)
    spaced = shared_args("spaced", attention_config=[[["global", "mamba"], 2]])
    assert len(list(build_sequential(spaced).logical_named_parameters())) > 0

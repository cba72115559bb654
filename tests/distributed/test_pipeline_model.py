"""GPT2ModelPipe holds the same layers, weights and names as the plain model."""

import functools

import pytest
import torch

from megatron import mpu
from megatron.model import GPT2ModelPipe, build_sequential, cross_entropy
from tests.common.distributed import run_distributed
from tests.common.models import inputs_and_targets, logical_gradients, model_args


def pipeline_model(stages, **keys):
    from megatron.initialize import initialize_distributed

    neox_args = model_args(pipe_parallel_size=stages, **keys)
    initialize_distributed(neox_args)
    return GPT2ModelPipe(neox_args, topology=mpu.get_topology())


def stage_contents(stages, keys):
    model = pipeline_model(stages, **keys)
    parameters = {name: parameter.detach().clone() for name, parameter in model.logical_named_parameters()}
    return parameters, list(model.state_dict()), model.stage_id


@pytest.mark.parametrize("tied", [True, False])
def test_the_stages_together_hold_the_weights_of_the_plain_model(tied):
    keys = {"no_weight_tying": not tied, "pos_emb": "learned"}
    whole = dict(build_sequential(model_args(**keys)).logical_named_parameters())
    (first, first_keys, _), (last, last_keys, stage) = run_distributed(stage_contents, 2, 2, keys)
    assert stage == 1
    assert first.keys() | last.keys() == whole.keys()
    for name, value in [*first.items(), *last.items()]:
        assert torch.equal(value, whole[name]), name
    # a tied output needs the word embeddings on the last stage, and nothing else of the embedding
    shared = first.keys() & last.keys()
    assert shared == ({"0.word_embeddings.weight"} if tied else set())
    prefix = "tied_modules.embed" if tied else "0"
    assert f"{prefix}.position_embeddings.weight" in first_keys
    assert ("tied_modules.embed.word_embeddings.weight" in last_keys) == tied
    assert {"3.attention.dense.weight", "5.norm.weight"} <= set(last_keys)


def one_stage(keys):
    """Loss, gradients and logits of a one-stage pipeline model and of its sequential form."""
    model = pipeline_model(1, **keys)
    inputs, targets = inputs_and_targets()
    loss = model.loss_fn(model(inputs), targets)
    loss.backward()
    gradients = {name: value.clone() for name, value in logical_gradients(model).items()}
    sequential = model.to_sequential()
    with torch.no_grad():
        logits = sequential(inputs)
        model.inference_mode(use_cache=True)
        parts = [model(tuple(part)) for part in zip(*(t.split((7, 5), 1) for t in inputs), strict=True)]
    return loss.item(), gradients, logits, torch.cat(parts, 1), list(sequential.state_dict())


@pytest.mark.parametrize("tied", [True, False])
def test_one_stage_computes_what_the_plain_model_does(tied):
    keys = {"no_weight_tying": not tied, "checkpoint_activations": True}
    loss, gradients, logits, cached, names = run_distributed(one_stage, 1, keys)[0]
    plain = build_sequential(model_args(**keys))
    inputs, targets = inputs_and_targets()
    expected = cross_entropy(plain(inputs), targets)
    expected.backward()
    assert loss == expected.item()
    for name, value in logical_gradients(plain).items():
        assert torch.equal(gradients[name], value), name
    assert torch.equal(logits, plain(inputs).detach())
    torch.testing.assert_close(cached, logits, rtol=1e-5, atol=1e-5)
    assert names == list(plain.state_dict())


def recomputed_layers(keys):
    model = pipeline_model(1, **keys)
    seen = []
    plain = model.checkpoint
    model.checkpoint = lambda function, x: seen.append(len(function.layers)) or plain(function, x)
    inputs, targets = inputs_and_targets()
    model.loss_fn(model(inputs), targets).backward()
    return seen, isinstance(model.loss_fn, functools.partial)


def test_all_blocks_of_a_stage_are_recomputed_whatever_the_interval():
    keys = {"num_layers": 3, "checkpoint_activations": True, "checkpoint_num_layers": 2}
    assert run_distributed(recomputed_layers, 1, keys)[0] == ([2, 1], True)

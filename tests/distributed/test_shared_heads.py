"""Tensor-parallel ranks that share key/value heads, and norms of heads, train like a single process."""

import functools
from pathlib import Path

import pytest
import torch

from megatron.checkpointing.weights import load_weights
from megatron.model import build_sequential
from tests.common.distributed import run_distributed
from tests.common.models import VOCABULARY, model_args, randomize
from tests.distributed.layouts import train_in_layout
from tests.distributed.test_layouts import assert_same_training
from tests.distributed.test_tensor_parallel import assert_same, every_mode, loss_and_gradients

STEPS = 8
NORMS = {"use_qk_layernorm": True}
# (config, layout): sequential and parallel residuals, with and without norms of heads, two and one key/value heads.
RUNS = {
    "1 head, tp2": ({"num_kv_heads": 1}, {"processes": 2, "model_parallel_size": 2}),
    "1 head, tp4+sp, sequential residual, norms": (
        {"num_kv_heads": 1, "gpt_j_residual": False, **NORMS},
        {"processes": 4, "model_parallel_size": 4, "sequence_parallel": True},
    ),
    "2 heads, tp4, norms": (
        {"num_kv_heads": 2, **NORMS},
        {"processes": 4, "model_parallel_size": 4},
    ),
    "1 head, zero1 dp2xtp2": (
        {"num_kv_heads": 1},
        {"processes": 4, "model_parallel_size": 2, "zero_optimization": {"stage": 1}},
    ),
    "all heads, tp2+sp, norms": (
        NORMS,
        {"processes": 2, "model_parallel_size": 2, "sequence_parallel": True},
    ),
}


@functools.cache
def single_process(config: tuple) -> dict:
    return train_in_layout(dict(config), steps=STEPS)


@pytest.mark.parametrize("run", RUNS)
def test_losses_and_gradients_equal_the_single_process_run(run):
    config, layout = RUNS[run]
    # Clipping acts in the first steps, so a wrong norm of the gradients would show in the losses.
    result = train_in_layout({**config, **layout}, steps=STEPS)
    assert_same_training(result, single_process(tuple(config.items())))


MODELS = {
    (kv_heads, norms, parallel): {
        "num_kv_heads": kv_heads,
        "use_qk_layernorm": norms,
        "gpt_j_residual": parallel,
        "hidden_size": 32,
        "checkpoint_activations": norms,
        # Each head its own norm, in every other model with norms.
        "qk_layernorm_per_head": norms and parallel,
    }
    for kv_heads in (1, 2)
    for norms in (False, True)
    for parallel in (False, True)
}


def every_model(tensor_size):
    from megatron import mpu

    mpu.initialize_model_parallel(tensor_size)
    return {
        (kind, cut): loss_and_gradients({**keys, "sequence_parallel": cut}, tensor_size)
        for kind, keys in MODELS.items()
        for cut in (False, True)
    }


@pytest.mark.parametrize("tensor_size", [2, 4])
def test_random_weights_and_biases_give_the_gradients_of_one_rank(tensor_size):
    expected = {kind: loss_and_gradients(keys) for kind, keys in MODELS.items()}
    for rank in run_distributed(every_model, tensor_size, tensor_size):
        for (kind, _), found in rank.items():
            assert_same(found, expected[kind])


def generating(keys, tensor_size):
    from megatron import mpu

    mpu.initialize_model_parallel(tensor_size)
    return every_mode(keys, tensor_size)


def test_cached_generation_with_a_shared_head_gives_the_logits_of_one_rank():
    keys = {"num_kv_heads": 1, "use_qk_layernorm": True}
    expected = every_mode(keys)[0]
    for _, full, cached, _ in run_distributed(generating, 2, keys, 2):
        torch.testing.assert_close(full, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-5)


SHARED = {"num_kv_heads": 1, "use_qk_layernorm": True, "hidden_size": 32}


def random_model(tensor_size):
    model = build_sequential(model_args(model_parallel_size=tensor_size, **SHARED))
    randomize(model)
    return model


def save_parts(folder, tensor_size):
    from megatron import mpu

    mpu.initialize_model_parallel(tensor_size)
    path = Path(folder, f"mp_rank_{mpu.get_model_parallel_rank():02d}_model_states.pt")
    torch.save({"module": random_model(tensor_size).state_dict()}, path)


def test_weights_of_ranks_that_share_a_head_load_in_one_process(tmp_path):
    run_distributed(save_parts, 4, str(tmp_path), 4)
    loaded, expected = build_sequential(model_args(**SHARED)), random_model(1)
    load_weights(loaded, tmp_path, VOCABULARY)
    for (name, value), wanted in zip(
        loaded.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(value, wanted), name

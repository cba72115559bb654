"""Tensor-parallel ranks that share key/value heads, and norms of heads, train like a single process."""

import functools

import pytest
import torch

from tests.common.distributed import run_distributed
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

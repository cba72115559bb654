"""The layout never changes the maths: every layout trains like a single process."""

import functools

import pytest
import torch

from tests.distributed.layouts import train_in_layout

LAYOUTS = {
    "dp2": {"processes": 2},
    "tp2": {"processes": 2, "model_parallel_size": 2},
    "pp2": {"processes": 2, "pipe_parallel_size": 2},
    "pp1": {"pipe_parallel_size": 1},
    "tp2+sp": {"processes": 2, "model_parallel_size": 2, "sequence_parallel": True},
    "tp2xpp2": {"processes": 4, "model_parallel_size": 2, "pipe_parallel_size": 2},
    "tp2xpp2+sp": {"processes": 4, "model_parallel_size": 2, "pipe_parallel_size": 2, "sequence_parallel": True},
    "dp2xtp2": {"processes": 4, "model_parallel_size": 2},
    "dp2+zero1": {"processes": 2, "zero_optimization": {"stage": 1}},
    "dp2+zero2": {"processes": 2, "zero_optimization": {"stage": 2}},
    "dp2+zero3": {"processes": 2, "zero_optimization": {"stage": 3}},
    "pp2+zero1+dp2": {"processes": 4, "pipe_parallel_size": 2, "zero_optimization": {"stage": 1}},
    "2x2": {"train_micro_batch_size_per_gpu": 2},
    "1x4": {"train_micro_batch_size_per_gpu": 1},
    "pp2 1x4, timed": {
        "processes": 2, "pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 1, "wall_clock_breakdown": True,
    },
    "checkpointed": {"checkpoint_activations": True},
    "tp2+partitioned checkpoints": {
        "processes": 2, "model_parallel_size": 2, "checkpoint_activations": True, "partition_activations": True,
    },
}  # fmt: skip
ARCHITECTURES = {
    "parallel residual, untied": {},
    "sequential residual, tied, learned": {
        "gpt_j_residual": False,
        "no_weight_tying": False,
        "pos_emb": "learned",
    },
}


@functools.cache
def single_process(architecture: str) -> dict:
    return train_in_layout(dict(ARCHITECTURES[architecture]))


@functools.cache
def fifty_steps_in_fp32() -> list[float]:
    return train_in_layout({}, steps=50, with_gradients=False)["losses"]


def assert_same_training(result: dict, reference: dict) -> None:
    assert result["losses"] == pytest.approx(reference["losses"], rel=1e-5)
    assert result["losses"][-1] < 0.9 * result["losses"][0]
    assert set(result["gradients"]) == set(reference["gradients"])
    for name, expected in reference["gradients"].items():
        error = (result["gradients"][name] - expected).norm() / expected.norm().clamp(min=1e-12)
        assert error < 1e-5, f"gradient of {name} differs by {error:.2e}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_first_gradients_equal_the_single_process_run(layout):
    result = train_in_layout(dict(LAYOUTS[layout]))
    assert_same_training(result, single_process("parallel residual, untied"))


@pytest.mark.parametrize("layout", ["tp2", "pp2", "tp2+sp", "dp2+zero1"])
def test_tied_sequential_residual_trains_the_same_in_every_layout(layout):
    architecture = "sequential residual, tied, learned"
    result = train_in_layout({**ARCHITECTURES[architecture], **LAYOUTS[layout]})
    assert_same_training(result, single_process(architecture))


@pytest.mark.parametrize("precision", ["bfloat16", "fp16"])
@pytest.mark.parametrize(
    ("layout", "stage"),
    [("dp2", 1), ("pp2", 1), ("1x4", 0), ("pp2 1x4, timed", 1), ("tp2+sp", 1), ("dp2+zero3", 3)],
)
def test_half_precision_follows_the_fp32_loss(precision, layout, stage):
    settings = {**LAYOUTS[layout], "precision": precision, "zero_optimization": {"stage": stage}}
    if precision == "fp16":
        settings["fp16"] = {"enabled": True, "initial_scale_power": 10}
    reference = fifty_steps_in_fp32()
    losses = train_in_layout(settings, steps=50, with_gradients=False)["losses"]
    assert losses == pytest.approx(reference, rel=1e-2)
    assert torch.tensor(losses).isfinite().all()

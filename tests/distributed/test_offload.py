"""Optimizer states and parameters kept in host memory change no result."""

import functools

import pytest

from tests.distributed.layouts import train_in_layout

CPU = {"device": "cpu"}
OFFLOADED = {
    "stage 1": {"stage": 1, "offload_optimizer": CPU},
    "stage 2, by the old key": {"stage": 2, "cpu_offload": True},
    "stage 3, parameters too": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
}


@functools.cache
def without(stage: int, precision: str) -> list[float]:
    settings = {"processes": 2, "zero_optimization": {"stage": stage}, "precision": precision}
    return train_in_layout(settings, steps=8, with_gradients=False)["losses"]


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_runs_have_the_losses_of_the_others(name):
    zero = OFFLOADED[name]
    settings = {"processes": 2, "zero_optimization": zero, "precision": "bfloat16"}
    losses = train_in_layout(settings, steps=8, with_gradients=False)["losses"]
    assert losses == pytest.approx(without(zero["stage"], "bfloat16"), rel=1e-3)

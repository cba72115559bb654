"""Optimizers that look at whole matrices, or exchange gradients in their own way, in the layouts that cut both.

tests/grid has every optimizer in the plain layouts.
"""

import pytest
import torch

from tests.distributed.layouts import train_in_layout
from tests.distributed.test_resume import SAVED_AT, STEPS, train_until

ZERO1 = {"zero_optimization": {"stage": 1}}
SHAPED = {
    "sm3": {"type": "sm3", "params": {"lr": 1e-2, "momentum": 0.9}},
    "muon": {"type": "muon", "params": {"lr": 1e-2}},
}
ONE_BIT = {"type": "onebitadam", "params": {"lr": 3e-3, "freeze_step": 2}}


def losses(**settings) -> list[float]:
    return train_in_layout({"num_layers": 2, **settings}, 10, with_gradients=False)["losses"]


@pytest.mark.parametrize("kind", SHAPED)
def test_matrices_cut_over_tensor_ranks_and_again_by_zero_are_seen_whole(kind):
    alone = losses(optimizer=SHAPED[kind])
    cut = losses(optimizer=SHAPED[kind], processes=4, model_parallel_size=2, **ZERO1)
    assert alone[-1] < alone[0] - 0.1
    assert cut == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", SHAPED)
def test_16_bit_steps_are_the_fp32_ones_rounded(kind):
    exact = losses(optimizer=SHAPED[kind])
    rounded = losses(optimizer=SHAPED[kind], processes=2, precision="bfloat16", **ZERO1)
    assert rounded == pytest.approx(exact, abs=5e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": SHAPED["sm3"], "precision": "bfloat16", **ZERO1},
        {"optimizer": SHAPED["muon"], "precision": "bfloat16", **ZERO1},
        # Saved in the second phase, in which each rank remembers what it could not send.
        {"optimizer": ONE_BIT},
    ],
    ids=["sm3", "muon", "onebitadam"],
)
def test_resume_is_bit_exact_on_two_ranks_with_states_of_their_own(settings, tmp_path):
    layout = {"num_layers": 2, "processes": 2, **settings}
    stored = {"save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 1000}
    straight = train_until(layout, STEPS)
    first = train_until({**layout, **stored}, SAVED_AT, save=True)
    second = train_until({**layout, **stored}, STEPS)
    for whole, begun, resumed in zip(straight, first, second, strict=True):
        assert whole["losses"] == begun["losses"] + resumed["losses"]
        for name, value in whole["weights"].items():
            assert torch.equal(value, resumed["weights"][name]), name


def test_momentum_in_one_bit_a_value_learns_and_keeps_replicas_equal():
    adam = losses(optimizer={"type": "adam", "params": {"lr": 3e-3}})
    ranks = train_until({"num_layers": 2, "processes": 2, "optimizer": ONE_BIT}, 10)
    assert ranks[0]["losses"][-1] < adam[0] - 0.5 * (adam[0] - adam[-1])
    for name, value in ranks[0]["weights"].items():
        assert torch.equal(value, ranks[1]["weights"][name]), name

"""Random states of checkpoints, in the forms in which they were written."""

import random
from types import SimpleNamespace

import numpy
import pytest
import torch

from megatron import mpu
from megatron.checkpointing.rng import (
    collect_rng_state,
    draw_anew,
    restore_rng_state,
    saved_rng_state,
)


@pytest.fixture(autouse=True)
def generators_as_before():
    state = collect_rng_state()
    yield
    restore_rng_state(state)


def draw():
    return random.random(), numpy.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize("legacy", [True, False], ids=["numpy tuple", "numpy dict"])
def test_a_sequence_of_draws_goes_on(legacy):
    state = collect_rng_state()
    state["np_rng_state"] = numpy.random.get_state(legacy=legacy)
    # Containers may come back as lists.
    state["random_rng_state"] = [
        part if isinstance(part, int) else list(part or ()) for part in random.getstate()[:2]
    ]
    state["random_rng_state"].append(None)
    expected = draw()
    draw()
    restore_rng_state(state)
    assert draw() == expected


def test_states_of_another_kind_of_device_are_left_out(capsys):
    state = collect_rng_state()
    expected = draw()
    # What a CUDA generator keeps.
    state |= {
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
        "rng_tracker_states": {"model-parallel-rng": None},
    }
    restore_rng_state(state)
    assert draw() == expected
    assert "model-parallel-rng" not in mpu.get_cuda_rng_tracker().get_states()
    assert "dropout starts afresh" in capsys.readouterr().err


def test_incomplete_states_do_not_count(tmp_path):
    state = collect_rng_state()
    assert saved_rng_state(tmp_path, state, 0).keys() == state.keys()
    del state["torch_rng_state"]
    assert saved_rng_state(tmp_path, state, 0) is None


def test_states_for_other_processes_depend_on_seed_and_iteration_only(capsys):
    def drawn(seed: int, iteration: int):
        draw_anew(SimpleNamespace(seed=seed, no_load_rng=False, finetune=False), iteration)
        return draw()

    first = drawn(1, 10)
    assert "drawn anew" in capsys.readouterr().out
    assert drawn(1, 10) == first
    assert len({first, drawn(1, 11), drawn(2, 10)}) == 3

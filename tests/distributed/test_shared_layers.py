"""Blocks that share their parameters, on one and on several pipeline stages, are the same run (P1, P14)."""

import pytest
import torch

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, batches, train_in_layout
from tests.distributed.test_resume import start, train_part

SPACED = {"num_unique_layers": 2, "param_sharing_style": "spaced", "no_weight_tying": False}


def test_stages_sum_the_gradients_of_what_both_have():
    """0 1 0 1: each stage of two has both."""
    single = train_in_layout({**SPACED}, 4)
    pipeline = train_in_layout({**SPACED, "processes": 2, "pipe_parallel_size": 2}, 4)
    assert pipeline["losses"] == pytest.approx(single["losses"], rel=1e-5)
    assert pipeline["gradients"].keys() == single["gradients"].keys()
    for name, gradient in single["gradients"].items():
        torch.testing.assert_close(pipeline["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


def copies(settings: dict, world_size: int, steps: int) -> dict[str, tuple]:
    """Train; weight and optimizer state of every block parameter of this stage, by logical name."""
    from deepspeed.utils import safe_get_full_optimizer_state

    from megatron.common.timers import Timers
    from megatron.training import train_step

    neox_args, engine, _ = start(settings, world_size)
    engine.train()
    iterator = batches(neox_args)
    for _ in range(steps):
        train_step(neox_args, Timers(), iterator, engine, None, None)
    return {
        name: (parameter.detach().clone(), safe_get_full_optimizer_state(parameter, "exp_avg"))
        for name, parameter in engine.module.logical_named_parameters()
        if name.startswith(("2.", "3."))
    }


def test_copies_on_two_stages_and_their_optimizer_states_stay_equal():
    settings = {**SPACED, "pipe_parallel_size": 2, "zero_optimization": {"stage": 1}, "precision": "bfloat16"}
    first, last = run_distributed(copies, 2, settings, 2, 3)
    common = first.keys() & last.keys()
    assert len(common) >= 20
    for name in common:
        for one, other in zip(first[name], last[name], strict=True):
            assert torch.equal(one, other), name


def loaded(settings: dict, world_size: int) -> dict[str, torch.Tensor]:
    neox_args, engine, iteration = start(settings, world_size)
    assert iteration == 2
    return {name: parameter.detach().clone() for name, parameter in engine.module.logical_named_parameters()}


@pytest.mark.parametrize(
    "stages, other, shared",
    [(2, 1, SPACED), (0, 2, SPACED), (2, 0, {"pos_emb": "rpe"}), (0, 2, {"pos_emb": "rpe"})],
)
def test_weights_go_to_another_number_of_stages(stages, other, shared, tmp_path):
    settings = {**shared, "pipe_parallel_size": stages, "save": str(tmp_path), "checkpoint_factor": 1000}
    run_distributed(train_part, max(1, stages), settings, max(1, stages), 2, True)
    reading = {**shared, "pipe_parallel_size": other, "load": str(tmp_path), "no_load_optim": True}
    here = run_distributed(loaded, max(1, other), reading, max(1, other))
    same = {**shared, "pipe_parallel_size": stages, "load": str(tmp_path), "no_load_optim": True}
    there = run_distributed(loaded, max(1, stages), same, max(1, stages))
    expected = {name: value for rank in there for name, value in rank.items()}
    found = {name: value for rank in here for name, value in rank.items()}
    assert found.keys() == expected.keys() and BASE["num_layers"] == 4
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_zero_3_cuts_shared_parameters_once_and_one_process_reads_them(tmp_path):
    found = {}
    for stage in (0, 3):
        place = {"save": str(tmp_path / str(stage)), "checkpoint_factor": 1000}
        settings = {**SPACED, **place, "zero_optimization": {"stage": stage}}
        run_distributed(train_part, 2, settings, 2, 2, True)
        reading = {**SPACED, "load": place["save"], "no_load_optim": True}
        found[stage] = run_distributed(loaded, 1, reading, 1)[0]
    assert found[0].keys() == found[3].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[3][name], value, rtol=1e-3, atol=1e-4)

"""A curriculum of lengths trains the same in every engine, resumes exactly, and leaves evaluation whole."""

import functools

import pytest
import torch

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, SEQUENCE, VOCABULARY, batches, train_in_layout

CURRICULUM = {
    "min_difficulty": 8,
    "max_difficulty": 32,
    "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 8},
}
LAYOUTS = {
    "pp1": {"pipe_parallel_size": 1},
    "pp2 1x4": {"processes": 2, "pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 1},
    "recomputed": {"checkpoint_activations": True, "contiguous_checkpointing": True},
    "tp2+sp": {"processes": 2, "model_parallel_size": 2, "sequence_parallel": True},
}


@functools.cache
def single_process() -> list[float]:
    return train_in_layout({"curriculum_learning": CURRICULUM}, steps=8)["losses"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_equal_the_single_process_run(layout):
    losses = train_in_layout({"curriculum_learning": CURRICULUM, **LAYOUTS[layout]}, steps=8)["losses"]
    assert losses == pytest.approx(single_process(), rel=1e-5)


def build(settings: dict, world_size: int):
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer

    neox_args = NeoXArgs.from_dict({**BASE, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    return neox_args, setup_model_and_optimizer(neox_args)[0]


def lengths_seen(settings: dict, world_size: int) -> list[int]:
    """Lengths of the label tensors of two steps, an evaluation, and a step."""
    from megatron.common.timers import Timers
    from megatron.training import evaluate, forward_step, train_step

    neox_args, engine = build(settings, world_size)
    seen = []
    objective_loss = engine.objective.loss

    def noted(outputs, targets):
        seen.append(targets[0].shape[1])
        return objective_loss(outputs, targets)

    engine.objective.loss = noted
    data = batches(neox_args)
    for step in range(3):
        train_step(neox_args, Timers(), data, engine, None, None)
        if step == 1:
            results = evaluate(neox_args, forward_step, data, engine)
            assert torch.isfinite(torch.tensor(results["lm_loss"]))
    return seen


@pytest.mark.parametrize("layout", [{}, {"pipe_parallel_size": 2}], ids=["plain", "pp2"])
def test_training_is_cut_to_the_curriculum_and_evaluation_is_not(layout):
    settings = {"curriculum_learning": CURRICULUM, **layout}
    world_size = layout.get("pipe_parallel_size", 1)
    last_stage = run_distributed(lengths_seen, world_size, settings, world_size)[-1]
    assert last_stage == [8, 16, SEQUENCE, 16]


def losses_until(settings: dict, until: int, save: bool) -> list[float]:
    import itertools

    from megatron.checkpointing import save_checkpoint
    from megatron.common.timers import Timers
    from megatron.training import train_step

    neox_args, engine = build(settings, 1)
    data = itertools.islice(batches(neox_args), engine.loaded_iteration, None)
    steps = range(engine.loaded_iteration, until)
    losses = [float(train_step(neox_args, Timers(), data, engine, None, None)[0]["lm_loss"]) for _ in steps]
    if save:
        assert save_checkpoint(neox_args, until, engine)
    return losses


def test_a_resumed_run_goes_on_at_the_length_it_had_reached(tmp_path):
    settings = {"curriculum_learning": CURRICULUM, "train_micro_batch_size_per_gpu": 4}
    saved = {**settings, "save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 1000}
    straight = run_distributed(losses_until, 1, settings, 6, False)[0]
    first = run_distributed(losses_until, 1, saved, 3, True)[0]
    second = run_distributed(losses_until, 1, saved, 6, False)[0]
    assert first + second == straight
    without_optimizer = {**saved, "save": None, "no_load_optim": True}
    third = run_distributed(losses_until, 1, without_optimizer, 4, False)[0]
    assert third[0] == pytest.approx(straight[3], rel=1e-6)

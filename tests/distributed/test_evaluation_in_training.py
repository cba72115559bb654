"""Evaluating by tasks in the middle of a training leaves the training as it was."""

import pytest

from tests.common.distributed import run_distributed
from tests.common.evaluation import write_tasks, write_tokenizer
from tests.distributed.layouts import BASE, batches
from tests.grid.worker import share_process_groups

LAYOUTS = {
    "pipeline": {"pipe_parallel_size": 2},
    "parameters cut over replicas": {"zero_optimization": {"stage": 3}},
    "sequence cut over tensor ranks": {
        "model_parallel_size": 2,
        "sequence_parallel": True,
        "no_weight_tying": False,  # the output layer is no module then
    },
}


def train_twice(settings: dict) -> dict[str, tuple[list, list, dict]]:
    """By layout: losses of four steps without and with an evaluation after two of them, and its scores."""
    share_process_groups()
    return {
        name: (train(settings | layout, False)[0], *train(settings | layout, True))
        for name, layout in LAYOUTS.items()
    }


def train(settings: dict, evaluates: bool) -> tuple[list[float], dict[str, float]]:
    from megatron import mpu
    from megatron.common.timers import Timers
    from megatron.evaluation.run import evaluate_in_training
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import forward_step, setup_model_and_optimizer, train_step

    neox_args = NeoXArgs.from_dict(settings)
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    iterator, losses, scores = batches(neox_args), [], {}
    engine.train()
    for step in range(4):
        if evaluates and step == 2:
            scores = evaluate_in_training(engine, forward_step, neox_args)
        metrics, _ = train_step(neox_args, Timers(), iterator, engine, optimizer, scheduler)
        losses.append(float(metrics["lm_loss"]))
    mpu.destroy_model_parallel()
    return losses, scores


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[dict]:
    place = tmp_path_factory.mktemp("tasks")
    settings = {
        **BASE,
        "num_layers": 2,
        "hidden_dropout": 0.1,  # so that disturbed random numbers would show
        "tokenizer_type": "HFTokenizer",
        "vocab_file": str(write_tokenizer(place)),
        "eval_tasks": ["toy_choice", "toy_generation"],
        "eval_include_path": str(write_tasks(place / "tasks")),
        "eval_limit": 3,
        "train_micro_batch_size_per_gpu": 2,
        "global_num_gpus": 2,
    }
    return run_distributed(train_twice, 2, settings, init=False, timeout=200)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_after_an_evaluation_are_those_without_it(runs, layout):
    without, with_it, scores = runs[0][layout]
    assert with_it == without
    assert len(set(without)) == 4
    assert set(scores) == {
        *(f"toy_choice_{name}" for name in ("acc", "acc_norm")),
        *(f"toy_generation_{name}" for name in ("exact_match", "bleu")),
    }
    assert runs[1][layout][2] == scores

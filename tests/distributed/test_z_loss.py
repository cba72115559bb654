"""The z-loss and its metric are the same in every layout."""

import functools

import pytest

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, VOCABULARY, batches

LAYOUTS = {
    "pp2 1x4": {"pipe_parallel_size": 2, "train_micro_batch_size_per_gpu": 1},
    "tp2": {"model_parallel_size": 2},
}


def metrics_of_steps(settings: dict, world_size: int) -> list[dict[str, float]]:
    """Logged values of an evaluation and three steps."""
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import evaluate, forward_step, setup_model_and_optimizer, train_step

    neox_args = NeoXArgs.from_dict({**BASE, "z_loss": 0.01, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine, *_ = setup_model_and_optimizer(neox_args)
    found = [{"lm_loss": evaluate(neox_args, forward_step, batches(neox_args), engine)["lm_loss"]}]
    data = batches(neox_args)
    for _ in range(3):
        metrics, _ = train_step(neox_args, Timers(), data, engine, None, None)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


@functools.cache
def single_process() -> list[dict[str, float]]:
    return run_distributed(metrics_of_steps, 1, {}, 1)[0]


def test_the_loss_of_the_first_step_is_logged_without_its_z_loss():
    evaluation, first, *_ = single_process()
    assert first["lm_loss"] == pytest.approx(evaluation["lm_loss"], rel=1e-6)
    # log(128)^2 is what nearly equal logits start with
    assert first["z_loss"] == pytest.approx(0.01 * 4.852**2, rel=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_equal_the_single_process_run_on_all_ranks(layout):
    for rank in run_distributed(metrics_of_steps, 2, LAYOUTS[layout], 2):
        for found, expected in zip(rank, single_process(), strict=True):
            assert found == pytest.approx(expected, rel=1e-5)

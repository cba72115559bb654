"""The noise scale is the same in every layout and survives a restart."""

import functools
import itertools

import pytest

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, VOCABULARY, batches

WATCHED = {
    "log_gradient_noise_scale": True,
    "gradient_noise_scale_n_batches": 2,
    "no_weight_tying": False,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
}
LAYOUTS = {
    "tp2xpp2": {"processes": 4, "model_parallel_size": 2, "pipe_parallel_size": 2},
    "dp2+zero1, on the host": {
        "processes": 2, "zero_optimization": {"stage": 1}, "gradient_noise_scale_cpu_offload": True,
    },
    "dp2+zero3": {"processes": 2, "zero_optimization": {"stage": 3}},
}  # fmt: skip


def train_until(settings: dict, world_size: int, until: int, save: bool) -> tuple[list, list]:
    """Noise scales after every step, and the averages at the end; maybe saves."""
    from megatron.checkpointing import save_checkpoint
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer, train_step

    neox_args = NeoXArgs.from_dict({**BASE, **WATCHED, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine = setup_model_and_optimizer(neox_args)[0]
    first = engine.loaded_iteration
    data = itertools.islice(batches(neox_args), first * neox_args.gradient_accumulation_steps, None)
    found = []
    for _ in range(first, until):
        train_step(neox_args, Timers(), data, engine, None, None)
        found.append(engine.noise_scale.noise_scale)
    if save:
        assert save_checkpoint(neox_args, until, engine)
    return found, engine.noise_scale.state_dict()["averages"]


@functools.cache
def single_process() -> tuple[list, list]:
    return run_distributed(train_until, 1, {}, 1, 8, False)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_of_every_layout_finds_the_single_process_averages(layout):
    settings = dict(LAYOUTS[layout])
    world_size = settings.pop("processes")
    for _, averages in run_distributed(train_until, world_size, settings, world_size, 8, False):
        assert averages == pytest.approx(single_process()[1], rel=1e-3)


def test_a_resumed_run_goes_on_with_the_averages(tmp_path):
    saved = {"save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 1000}
    (begun, _), (resumed, averages) = (
        run_distributed(train_until, 1, saved, 1, until, until == 4)[0] for until in (4, 8)
    )
    assert begun + resumed == [*single_process()[0][:4], single_process()[0][3], *single_process()[0][5:]]
    assert averages == single_process()[1]

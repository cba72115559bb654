"""Runs of small models that save and are gone on from in other layouts; several share one process group."""

import itertools
from types import SimpleNamespace

import torch

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, batches
from tests.grid.worker import share_process_groups

SAVED_AT, STEPS = 3, 10
SMALL = {**BASE, "num_layers": 2, "train_batch_size": 4, "checkpoint_factor": 1000}
# Samples of tests.distributed.layouts stay below this.
VOCABULARY = 128


def start(settings: dict):
    """A new grid, model and engine on this rank, whatever ran before: (config, engine)."""
    from megatron import mpu
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer

    mpu.destroy_model_parallel()
    settings = {**SMALL, "global_num_gpus": torch.distributed.get_world_size(), **settings}
    vocabulary, divisor = settings.pop("vocabulary", VOCABULARY), settings.pop("divisor", VOCABULARY)
    neox_args = NeoXArgs.from_dict({**settings, "make_vocab_size_divisible_by": divisor})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    unit = divisor * neox_args.model_parallel_size
    neox_args.padded_vocab_size = -(-vocabulary // unit) * unit
    neox_args.tokenizer = SimpleNamespace(vocab_size=vocabulary, eod=0)
    initialize_megatron(neox_args)
    engine, *_ = setup_model_and_optimizer(neox_args)
    engine.train()
    return neox_args, engine


def train(neox_args, engine, first: int, count: int) -> list[float]:
    """Losses of `count` steps from iteration `first` on."""
    from megatron.common.timers import Timers
    from megatron.training import train_step

    skip = first * neox_args.gradient_accumulation_steps
    iterator = itertools.islice(batches(neox_args), skip, None)
    steps = (train_step(neox_args, Timers(), iterator, engine, None, None) for _ in range(count))
    return [float(metrics["lm_loss"]) for metrics, _ in steps]


def save_and_go_on(settings: dict, folder: str) -> list[float]:
    """Losses of the steps after the one that is saved."""
    from megatron.checkpointing import save_checkpoint

    neox_args, engine = start({**settings, "save": folder})
    train(neox_args, engine, 0, SAVED_AT)
    assert save_checkpoint(neox_args, SAVED_AT, engine)
    return train(neox_args, engine, SAVED_AT, STEPS)


def resume(settings: dict, folder: str) -> list[float]:
    """Losses of the steps after the one that was saved in `folder`."""
    neox_args, engine = start({**settings, "load": folder})
    assert engine.loaded_iteration == SAVED_AT
    return train(neox_args, engine, SAVED_AT, STEPS)


def save_again(settings: dict, folder: str, target: str) -> None:
    """Load from `folder` and save to `target` without a step between."""
    from megatron.checkpointing import save_checkpoint

    neox_args, engine = start({**settings, "load": folder, "save": target})
    assert save_checkpoint(neox_args, SAVED_AT, engine)


def run_jobs(jobs: list[tuple]) -> list:
    """[function(*arguments)] one after the other."""
    share_process_groups()
    results = []
    for function, *arguments in jobs:
        results.append(function(*arguments))
        torch.distributed.barrier()
    return results


def run_all(jobs: list[tuple[int, tuple]], timeout: float = 400.0) -> list:
    """Results of rank 0 of jobs (number of processes, (function, *arguments)); jobs of as many processes share them."""
    results: dict[int, object] = {}
    for size in sorted({processes for processes, _ in jobs}):
        numbers = [number for number, (processes, _) in enumerate(jobs) if processes == size]
        ranks = run_distributed(run_jobs, size, [jobs[number][1] for number in numbers], timeout=timeout)
        assert all(rank == ranks[0] for rank in ranks)
        results |= dict(zip(numbers, ranks[0], strict=True))
    return [results[number] for number in range(len(jobs))]

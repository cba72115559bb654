"""Random number generators in and out of checkpoints, one state per rank."""

import random
from pathlib import Path

import numpy
import torch

from megatron import mpu
from megatron.checkpointing.safe_engine import load_file
from megatron.common import device
from megatron.common.console import info, warn
from megatron.initialize import set_random_seed
from megatron.mpu.parameters import stable_seed

_SEEDS = 2**31
_KEYS = ("random_rng_state", "np_rng_state", "torch_rng_state", "cuda_rng_state", "rng_tracker_states")


def rng_file(directory: str | Path, rank: int) -> Path:
    """Where the generators of a global rank are kept."""
    return Path(directory, f"rng_rank_{rank:05d}.pt")


def collect_rng_state() -> dict:
    """States of all generators of this rank under GPT-NeoX's keys."""
    return {
        "random_rng_state": random.getstate(),
        "np_rng_state": numpy.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": device.get_rng_state(),
        "rng_tracker_states": mpu.get_cuda_rng_tracker().get_states(),
    }


def restore_rng_state(state: dict) -> None:
    """Counterpart of collect_rng_state."""
    random.setstate(_as_tuples(state["random_rng_state"]))
    numpy.random.set_state(state["np_rng_state"])
    torch.set_rng_state(state["torch_rng_state"].cpu())
    if state["cuda_rng_state"].numel() != device.get_rng_state().numel():
        warn(
            "the random states of the checkpoint's devices mean nothing to this kind of device: dropout starts afresh"
        )
        return
    device.set_rng_state(state["cuda_rng_state"].cpu())
    mpu.get_cuda_rng_tracker().set_states(state["rng_tracker_states"])


def saved_rng_state(directory: str | Path, client_state: dict, rank: int) -> dict | None:
    """The state saved by this rank, or the one its model-parallel group shares in GPT-NeoX's own checkpoints."""
    if rng_file(directory, rank).is_file():
        return load_file(rng_file(directory, rank))
    if all(key in client_state for key in _KEYS):
        return {key: client_state[key] for key in _KEYS}
    return None


def restore_rng(neox_args, directory: Path, client_state: dict) -> None:
    """Restore this rank's random states unless the config says not to."""
    if neox_args.no_load_rng or neox_args.finetune:
        return
    state = saved_rng_state(directory, client_state, torch.distributed.get_rank())
    if state is None:
        warn(
            f"{directory} holds no random states for this rank (no_save_rng, or another layout): using fresh ones"
        )
    else:
        restore_rng_state(state)


def draw_anew(neox_args, iteration: int) -> None:
    """Seed the generators of a run that goes on with other processes than it began with: dropout depends on them, the
    order of the data does not. The same iteration gives the same states."""
    if neox_args.no_load_rng or neox_args.finetune:
        return
    info(
        "the random states of dropout are those of another layout: they are drawn anew from seed and iteration"
    )
    set_random_seed(1 + stable_seed(neox_args.seed, f"iteration {iteration}") % _SEEDS)


def _as_tuples(value):
    return tuple(_as_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value

"""Random number states of tensor parallelism.

Replicated regions draw from torch's default generator, whose state is equal on all ranks of a tensor-parallel group.
Sharded regions (attention dropout, and everything under sequence parallelism) draw from a named state of their own,
which differs between the ranks.
"""

import contextlib
from collections.abc import Iterator

import torch

from megatron.common import device
from megatron.mpu import state

MODEL_PARALLEL_RNG = "model-parallel-rng"
MODEL_PARALLEL_SEED_OFFSET = 2718


class RNGStatesTracker:
    """Named states of the device's generator, swapped in for the length of a block."""

    def __init__(self):
        self._states: dict[str, torch.Tensor] = {}

    def reset(self) -> None:
        self._states = {}

    def get_states(self) -> dict[str, torch.Tensor]:
        return dict(self._states)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        self._states = dict(states)

    def add(self, name: str, seed: int) -> None:
        """Start the state `name` from `seed`; the generator itself is left as it was."""
        assert name not in self._states, f"random state {name!r} exists already"
        before = device.get_rng_state()
        if device.has_accelerator():
            torch.cuda.manual_seed(seed)
        else:
            torch.random.default_generator.manual_seed(seed)
        self._states[name] = device.get_rng_state()
        device.set_rng_state(before)

    @contextlib.contextmanager
    def fork(self, name: str = MODEL_PARALLEL_RNG) -> Iterator[None]:
        """Draw from the state `name` within the block. Raises AssertionError if it was never added."""
        assert name in self._states, f"random state {name!r} was not added"
        before = device.get_rng_state()
        device.set_rng_state(self._states[name])
        try:
            yield
        finally:
            self._states[name] = device.get_rng_state()
            device.set_rng_state(before)


_tracker = RNGStatesTracker()


def get_rng_tracker() -> RNGStatesTracker:
    """The process's tracker."""
    return _tracker


def model_parallel_manual_seed(seed: int) -> None:
    """Seed the default generators with `seed`, and the sharded regions with seed + 2718 + tensor rank."""
    device.manual_seed(seed)
    _tracker.reset()
    _tracker.add(MODEL_PARALLEL_RNG, seed + MODEL_PARALLEL_SEED_OFFSET + state.get_model_parallel_rank())


@contextlib.contextmanager
def sharded_region() -> Iterator[None]:
    """Draw from the rank's own state, if there is more than one rank to differ from."""
    if state.get_model_parallel_world_size() == 1:
        yield
        return
    with _tracker.fork():
        yield


# The device-bound names that GPT-NeoX code imports.
get_cuda_rng_tracker = get_rng_tracker
model_parallel_cuda_manual_seed = model_parallel_manual_seed

"""The saves of a training run: what it waits for, and what becomes of them."""

import time

from megatron.checkpointing import save_checkpoint
from megatron.checkpointing.save import follow_save
from megatron.common.activity import beat
from megatron.common.errors import CheckpointError
from megatron.engine.train_state import TrainState


def save(neox_args, timers, model, state: TrainState, metrics) -> None:
    """Save; a failure is reported and training goes on. The time it has waited is logged."""
    running = timers("interval time").running
    if running:
        timers("interval time").stop()
    start = time.monotonic()
    beat("saving the checkpoint", state.iteration)
    follow(model, state, wait=True)
    saved = save_checkpoint(neox_args, state.iteration, model)
    if saved and not neox_args.async_save:
        state.last_saved = state.iteration
    metrics.log({"runtime/save_stall": time.monotonic() - start}, state.iteration)
    if running:
        timers("interval time").start()


def follow(model, state: TrainState, wait: bool = False) -> None:
    """Take note of a save in the background that has come to its end; `wait`: until it has."""
    outcome = follow_save(model, wait)
    if outcome is not None and outcome.saved:
        state.last_saved = outcome.iteration


def save_last(neox_args, timers, model, state: TrainState, metrics) -> None:
    """Save where training has ended, unless that is done.

    Raises: CheckpointError if there will be no checkpoint of it.
    """
    follow(model, state, wait=True)
    if not state.iteration or state.last_saved == state.iteration:
        return
    save(neox_args, timers, model, state, metrics)
    follow(model, state, wait=True)
    if state.last_saved != state.iteration:
        newest = "none was" if state.last_saved is None else f"the newest is of iteration {state.last_saved}"
        raise CheckpointError(
            f"save: the last checkpoint could not be written to {neox_args.save} (the reason is above), {newest}; make "
            "room or mend the place, and train on from there"
        )

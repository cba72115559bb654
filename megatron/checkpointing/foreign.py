"""Going on from a checkpoint tree that GPT-NeoX wrote (any layout), by logical parameter names.

DeepSpeed's own loading would depend on the writer's layout, parameter order and version; here every state is looked up
by the name of its parameter and set where this run keeps it.
"""

from pathlib import Path

import torch

from megatron import mpu
from megatron.checkpointing.checks import check_model_args
from megatron.checkpointing.engine_states import EngineStates
from megatron.checkpointing.model_files import ModelFiles, saved_iteration, state_of_this_rank
from megatron.checkpointing.rng import restore_rng
from megatron.checkpointing.saved_optimizer import MASTER, SavedOptimizer
from megatron.checkpointing.weights import SavedWeights, is_summand, load_weights, local_part, whole


def load_foreign(neox_args, engine, directory: Path) -> int:
    """Restore weights, fp32 copies, optimizer, loss scale, schedule, counters and random states of GPT-NeoX's tree.

    Returns: the iteration it was saved at.
    Raises: CheckpointError when it is of another model, or something cannot be read, with the file and the key.
    """
    weights = SavedWeights(directory)
    files = ModelFiles(directory, weights.tensor_size)
    state = files.state(0, 0)
    check_model_args(neox_args, state.get("args", {}))
    iteration = saved_iteration(state, directory)
    vocabulary = neox_args.tokenizer.vocab_size
    load_weights(engine.module, directory, vocabulary, neox_args.gpt_j_residual)
    updates = restore_optimizer(neox_args, engine, SavedOptimizer(weights, files), state)
    restore_schedule(engine, state, iteration, updates)
    restore_rng(neox_args, directory, state_of_this_rank(directory, weights.tensor_size))
    return iteration


def restore_optimizer(neox_args, engine, saved: SavedOptimizer, state: dict) -> int:
    """Set fp32 copies and optimizer states of all parameters of this rank. Returns: the steps the optimizer has taken.

    state: what GPT-NeoX kept beside the weights.
    """
    stage, tensor_rank = mpu.get_pipe_parallel_rank(), mpu.get_model_parallel_rank()
    same_layout = saved.weights.tensor_size == mpu.get_model_parallel_world_size()
    first = saved.stage(0, tensor_rank if same_layout else 0)
    steps = first.steps
    if steps is None:
        steps = int(state.get("global_steps", 0)) - int(state.get("skipped_steps", 0))
    states = EngineStates(engine, steps)
    kinds = set.union(*(slot.kinds() for slot in first.slots.values()))
    if steps > 0:
        states.check(kinds, f"the optimizer in {saved.files.directory}")
    wanted = kinds & (states.kinds | {MASTER})
    for name, parameter in engine.module.logical_named_parameters():
        for kind in sorted(wanted):
            value = local_part(
                lambda rank, name=name, kind=kind: saved.slot(name, rank, stage).value(kind),
                parameter.spec,
                saved.weights,
                neox_args.tokenizer.vocab_size,
                # All of them have the same gradient, and so the same optimizer states.
                summands=kind == MASTER and is_summand(name, neox_args.gpt_j_residual),
            )
            states.put(parameter, kind, value)
            if kind == MASTER:
                # A sum of rounded biases is not the rounded sum, and a run in fp32 has no other copy.
                with whole([parameter]), torch.no_grad():
                    parameter.copy_(value)
    states.set_loss_scale(first.scaler)
    return steps


def restore_schedule(engine, state: dict, iteration: int, updates: int) -> None:
    """Learning rate schedule and DeepSpeed's counters."""
    if state.get("lr_scheduler"):
        engine.lr_scheduler.load_state_dict(state["lr_scheduler"])
    else:
        engine.lr_scheduler.step(updates)
    engine.global_steps = int(state.get("global_steps", iteration))
    engine.skipped_steps = int(state.get("skipped_steps", 0))
    engine.global_samples = int(state.get("global_samples", engine.global_steps * engine.train_batch_size()))

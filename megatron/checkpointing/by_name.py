"""Going on from a checkpoint tree of any layout, by logical parameter names: GPT-NeoX's, and our own of another layout.

DeepSpeed's own loading would depend on the writer's layout, parameter order and version; here every state is looked up
by the name of its parameter and set where this run keeps it.
"""

from dataclasses import replace
from pathlib import Path

import torch

from megatron import mpu
from megatron.checkpointing.checks import check_model_args
from megatron.checkpointing.engine_states import EngineStates
from megatron.checkpointing.model_files import ModelFiles, saved_iteration
from megatron.checkpointing.saved_optimizer import COVER, MASTER, SavedOptimizer
from megatron.checkpointing.weights import SavedWeights, is_summand, load_weights, local_part, whole
from megatron.mpu import ParameterSpec


def load_by_name(neox_args, engine, directory: Path) -> dict:
    """Restore weights, fp32 copies, optimizer, loss scale, schedule and counters.

    Returns: what the tree keeps beside the weights, with its `iteration`.
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
    return {**state, "iteration": iteration}


def restore_optimizer(neox_args, engine, saved: SavedOptimizer, state: dict) -> int:
    """Set fp32 copies and optimizer states of all parameters of this rank. Returns: the steps the optimizer has taken.

    state: what the tree keeps beside the weights.
    """
    tensor_rank = mpu.get_model_parallel_rank()
    same_layout = saved.weights.tensor_size == mpu.get_model_parallel_world_size()
    first = saved.stage(0, tensor_rank if same_layout else 0)
    steps = first.steps
    if steps is None:
        steps = int(state.get("global_steps", 0)) - int(state.get("skipped_steps", 0))
    states = EngineStates(engine, steps)
    if steps > 0:
        kinds = set.union(*(slot.kinds() for slot in first.slots.values()))
        states.check(kinds, f"the optimizer in {saved.files.directory}")
    for name, parameter in engine.module.logical_named_parameters():
        if parameter.requires_grad:
            _restore(neox_args, states, saved, name, parameter)
    states.set_loss_scale(first.scaler)
    if hasattr(engine.optimizer, "attach"):
        # What it does to the engine may depend on its steps.
        engine.optimizer.attach(engine)
    return steps


def _restore(neox_args, states: EngineStates, saved: SavedOptimizer, name: str, parameter) -> None:
    """Set the fp32 copy and the states of one parameter."""
    stage, vocabulary = mpu.get_pipe_parallel_rank(), neox_args.tokenizer.vocab_size
    slot = saved.slot(name, 0, stage)
    kinds = slot.kinds() & states.kinds if states.holds(parameter) else set()
    for kind in sorted(kinds | {MASTER}):
        value = local_part(
            lambda rank, kind=kind: saved.value(name, kind, rank, stage),
            parameter.spec,
            saved.weights,
            vocabulary,
            # All of them have the same gradient, and so the same optimizer states.
            summands=kind == MASTER and is_summand(name, neox_args.gpt_j_residual),
        )
        states.put(parameter, kind, value)
        if kind == MASTER:
            # A sum of rounded biases is not the rounded sum, and a run in fp32 has no other copy.
            with whole([parameter]), torch.no_grad():
                parameter.copy_(value)
    for kind in slot.covers:
        dim = int(kind.removeprefix(COVER))
        value = local_part(
            lambda rank, kind=kind: saved.slot(name, rank, stage).covers[kind],
            cover_spec(parameter.spec, dim),
            saved.weights,
            vocabulary,
        )
        states.put_cover(parameter, dim, value)
    if slot.kinds() <= {MASTER} and not slot.covers:
        states.forget(parameter)
    elif slot.steps is not None:
        states.set_steps(parameter, slot.steps)


def cover_spec(spec: ParameterSpec, dim: int) -> ParameterSpec:
    """How a vector with one value for each index of dimension `dim` of a parameter is cut over tensor ranks."""
    length = (spec.logical_shape or (1,))[dim]
    if dim == spec.shard_dim:
        return replace(spec, logical_shape=(length,), shard_dim=0)
    return replace(spec, logical_shape=(length,), shard_dim=None, blocks=(), vocabulary=False)


def restore_schedule(engine, state: dict, iteration: int, updates: int) -> None:
    """Learning rate schedule and DeepSpeed's counters."""
    if state.get("lr_scheduler"):
        engine.lr_scheduler.load_state_dict(state["lr_scheduler"])
    else:
        engine.lr_scheduler.step(updates)
    engine.global_steps = int(state.get("global_steps", iteration))
    engine.skipped_steps = int(state.get("skipped_steps", 0))
    engine.global_samples = int(state.get("global_samples", engine.global_steps * engine.train_batch_size()))

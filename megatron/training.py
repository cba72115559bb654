"""The training story: prepare, train, validate, save. Each function reads as its own table of contents."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron.checkpointing import is_save_iter, load_checkpoint
from megatron.checkpointing.remote import RemoteTree
from megatron.checkpointing.save import warn_of_later_checkpoints
from megatron.checkpointing.weights import warm_start
from megatron.common.activity import beat
from megatron.common.console import info, print_rank_0, warn
from megatron.common.device import current_device
from megatron.common.errors import COME_AGAIN, DataError
from megatron.common.files import check_writable
from megatron.common.timers import Timers
from megatron.data.data_utils import (
    DataLoaders,
    build_train_valid_test_data_loaders,
    shift_and_wrap_data_loaders,
)
from megatron.engine import saves
from megatron.engine.averages import mean_over_replicas
from megatron.engine.batches import (
    BatchFunction,
    TimedIterator,
    get_batch,
    get_batch_pipe,
    get_batch_sequential,
    use_length,
)
from megatron.engine.needed import check_settings
from megatron.engine.overflow import OverflowMonitor, explained_overflow
from megatron.engine.serving import served_weights
from megatron.engine.setup import (
    build_engine,
    get_learning_rate_scheduler,
    get_model,
    get_optimizer,
    restore_full_precision_masters,
)
from megatron.engine.stages import time_instructions
from megatron.engine.stop import StopSignal, uninterrupted
from megatron.engine.train_state import TrainState
from megatron.evaluation.harness import check_tasks
from megatron.evaluation.run import remind_of_validation
from megatron.evaluation.validation import evaluate, evaluate_and_print_results
from megatron.gradient_noise_scale import GradientNoiseScale
from megatron.initialize import initialize_megatron
from megatron.logging import Metrics, training_log
from megatron.logging.parameters import ParameterReport
from megatron.logging.profiler import Profiler, save_snapshot
from megatron.logging.report import tags_of_start
from megatron.mup_substitute import mup_coord_check, save_base_shapes
from megatron.neox_arguments.curriculum import Curriculum
from megatron.objectives import build_objective

__all__ = [
    "backward_step",
    "collect_loss_for_unit_test",
    "evaluate",
    "evaluate_and_print_results",
    "forward_step",
    "get_batch",
    "get_batch_pipe",
    "get_batch_sequential",
    "get_learning_rate_scheduler",
    "get_model",
    "get_optimizer",
    "is_save_iter",
    "pretrain",
    "save_snapshot",
    "setup_model_and_optimizer",
    "train",
    "train_step",
    "train_step_pipe",
    "update_iterations",
]


def pretrain(neox_args) -> int:
    """Train a model as the config says: from the data loaders to the last save and the test.

    Returns: the exit code, COME_AGAIN if a signal has ended the training and another start would go on.
    """
    began = time.monotonic()
    timers = Timers(tensorboard_writer=neox_args.tensorboard_writer)
    check_before_start(neox_args)
    if finish_initialization := initialize_megatron(neox_args):
        finish_initialization()

    if neox_args.save_base_shapes:
        save_base_shapes(neox_args)
        return 0
    data_loaders = prepare_data(neox_args, timers)
    if neox_args.coord_check:
        mup_coord_check(neox_args, timers, None, shift_and_wrap_data_loaders(neox_args, data_loaders)[0])
        return 0
    beat("building the model")
    timers("model and optimizer").start()
    engine, optimizer, lr_scheduler, reference = setup_model_and_optimizer(
        neox_args, iteration=neox_args.iteration
    )
    state = TrainState.resumed_at(engine.loaded_iteration, data_loaders)
    remind_of_validation(neox_args, state.do_valid)
    if neox_args.save:
        warn_of_later_checkpoints(neox_args, state.iteration)
    timers("model and optimizer").stop()

    iterators = shift_and_wrap_data_loaders(
        neox_args, data_loaders, iteration=state.iteration, samples=engine.samples_before
    )
    train_data, valid_data, test_data = (
        None if iterator is None else TimedIterator(iterator, timers("data wait")) for iterator in iterators
    )
    timers.log(["data loaders", "model and optimizer"])
    with served_weights(neox_args, engine) as server, Metrics(neox_args) as metrics:
        metrics.log(tags_of_start(neox_args, time.monotonic() - began), state.iteration)
        if state.do_train and state.iteration < neox_args.train_iters:
            train(
                neox_args, timers, engine, reference, optimizer, lr_scheduler, train_data, valid_data, state, metrics
            )  # fmt: skip
        elif state.do_train:
            info(f"nothing is left to train: iteration {state.iteration} of {neox_args.train_iters}")
        if server is not None:
            server.no_more_steps()
        finish(neox_args, timers, engine, valid_data, test_data, state, metrics)
    return exit_code(neox_args, state)


def check_before_start(neox_args) -> None:
    """Find what is wrong before anything takes time. Raises: NeoXError."""
    check_settings(neox_args)
    if neox_args.eval_tasks and neox_args.rank == 0:
        check_tasks(neox_args)
    if neox_args.save:
        check_writable(neox_args.save, "save")
        if neox_args.s3_path:
            RemoteTree.of_run(neox_args).check()


def prepare_data(neox_args, timers) -> DataLoaders:
    """The loaders, and with `train_epochs` the length of training that they make."""
    beat("preparing the data")
    timers("data loaders").start()
    data_loaders = build_train_valid_test_data_loaders(neox_args)
    update_iterations(neox_args, data_loaders)
    timers("data loaders").stop()
    return data_loaders


def finish(neox_args, timers, engine, valid_data, test_data, state: TrainState, metrics: Metrics) -> None:
    """Save first, so that nothing after it can lose work; then validate and test if training came to its end."""
    if neox_args.save and state.do_train:
        with uninterrupted():
            saves.save_last(neox_args, timers, engine, state, metrics)
    if state.iteration >= neox_args.train_iters:
        for name, data, wanted in (
            ("validation", valid_data, state.do_valid),
            ("test", test_data, state.do_test),
        ):
            if wanted:
                evaluate_and_print_results(
                    neox_args, f"the end of training for {name} data", forward_step, data, engine, state.iteration,
                    verbose=name == "test", timers=timers, chart_name=name, metrics=metrics,
                )  # fmt: skip


def exit_code(neox_args, state: TrainState) -> int:
    """0, or COME_AGAIN if the training was told to go on later and another start would."""
    if not state.to_be_continued:
        return 0
    if neox_args.save and neox_args.load and Path(neox_args.save).resolve() == Path(neox_args.load).resolve():
        info(f"exit code {COME_AGAIN}: the next start goes on from iteration {state.iteration}")
        return COME_AGAIN
    warn(
        "another start would not go on from here, so none is asked for; set save and load to the same folder"
    )
    return 0


def update_iterations(neox_args, data_loaders: dict) -> None:
    """With `train_epochs`, turn the length of the training data into `train_iters`, the same on all ranks.

    This is the one value of the config that only the data can tell.
    """
    if not neox_args.train_epochs:
        return
    # Middle pipeline stages have no loader: the length on all ranks is that of those which have one.
    loader = data_loaders.get("train")
    samples = torch.tensor([0 if loader is None else len(loader.dataset)], device=current_device())
    torch.distributed.all_reduce(samples, op=torch.distributed.ReduceOp.MAX)
    neox_args.train_iters = int(samples) * neox_args.train_epochs // neox_args.train_batch_size
    if neox_args.train_iters < 1:
        raise DataError("train_epochs: the training data is shorter than one global batch")
    print_rank_0(f"{neox_args.train_epochs} epoch(s) are {neox_args.train_iters} iterations")


def setup_model_and_optimizer(neox_args, use_cache: bool = False, iteration: int | None = None):
    """Build model, optimizer and schedule into an engine and load the checkpoint that the config names.

    Returns: (engine, optimizer, learning rate scheduler, reference engine or None). `engine.loaded_iteration` is the
    iteration that was loaded, 0 for a fresh start; `engine.samples_before` the samples that had been read by then.
    """
    objective = build_objective(neox_args)
    model = get_model(neox_args, use_cache)
    without_optimizer = neox_args.finetune or neox_args.no_load_optim
    # Before the engine is built, so that its fp32 masters and partitions are made of the loaded weights.
    started_at = warm_start(neox_args, model, iteration) if without_optimizer else None
    engine, optimizer, lr_scheduler = build_engine(neox_args, model, objective)
    engine.objective = objective
    engine.batch_function = BatchFunction(objective, neox_args.padded_vocab_size)
    engine.curriculum = Curriculum.from_config(neox_args.curriculum_learning)
    engine.noise_scale = GradientNoiseScale.from_config(neox_args, engine)
    if engine.noise_scale is not None:
        engine.stateful["noise_scale"] = engine.noise_scale
    engine.parameter_report = ParameterReport.from_config(neox_args, engine)
    if neox_args.is_pipe_parallel:
        engine.set_batch_fn(engine.batch_function)
    if without_optimizer:
        # DeepSpeed's count of steps is what a curriculum goes by.
        engine.loaded_iteration, engine.samples_before = started_at or (0, 0)
        engine.global_steps = engine.loaded_iteration
    else:
        engine.loaded_iteration = load_checkpoint(
            neox_args, engine, optimizer, lr_scheduler, iteration=iteration
        )
    if started_at is None and engine.loaded_from is None:
        restore_full_precision_masters(engine, neox_args)
    return engine, optimizer, lr_scheduler, None


def train(
    neox_args,
    timers,
    model,
    reference_model,
    optimizer,
    lr_scheduler,
    train_data_iterator: Iterator | None,
    valid_data_iterator: Iterator | None,
    state: TrainState | None = None,
    metrics: Metrics | None = None,
) -> int:
    """The training loop: step, log, save, validate, until the length, `exit_interval` or a signal ends it.

    Returns: the iteration reached.
    """
    state = state or TrainState(do_valid=valid_data_iterator is not None)
    metrics = metrics or Metrics(neox_args)
    totals: dict = {}
    report_memory_flag = True
    overflow = OverflowMonitor(optimizer)
    if state.iteration == 0:
        _save_if_due(neox_args, timers, model, state, metrics)
    model.train()
    if neox_args.is_pipe_parallel:
        time_instructions(model, timers)
    timers("interval time").start()
    with StopSignal() as stop, Profiler.from_config(neox_args, model) as profiler:
        while state.iteration < neox_args.train_iters:
            beat("training step", state.iteration + 1)
            with profiler.iteration(state.iteration + 1):
                losses, skipped = train_step(
                    neox_args, timers, train_data_iterator, model, optimizer, lr_scheduler, reference_model
                )
            state.advance(skipped)
            overflow.check(skipped)
            saves.follow(model, state)
            rate, scale = model.get_lr()[0], _loss_scale(neox_args, model)
            report_memory_flag = training_log(
                neox_args, timers, losses, totals, rate, state.iteration, scale, report_memory_flag, skipped, model,
                optimizer, model.noise_scale, metrics=metrics, parameter_report=model.parameter_report,
            )  # fmt: skip
            _save_if_due(neox_args, timers, model, state, metrics)
            _validate_if_due(neox_args, timers, model, valid_data_iterator, state, metrics)
            if stop.poll() or _exit_due(neox_args, state):
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                info(f"rank: 0 | time: {now} | exiting the program at iteration {state.iteration}")
                break
        state.to_be_continued = stop.to_be_continued and state.iteration < neox_args.train_iters
    timers("interval time").stop()
    return state.iteration


def train_step(
    neox_args, timers, data_iterator, model, optimizer, lr_scheduler, reference_model=None
) -> tuple[dict[str, torch.Tensor], int]:
    """One optimizer step over all micro-batches.

    Returns: (losses averaged over micro-batches and replicas, still on the device; 1 if the step was skipped).
    """
    skipped_before = model.skipped_steps
    if model.curriculum is not None:
        use_length(model, model.curriculum.length_at(model.global_steps + 1))
    with explained_overflow():
        if neox_args.is_pipe_parallel:
            losses = train_step_pipe(neox_args, timers, model, data_iterator)
        else:
            losses = _train_step_sequential(
                neox_args, timers, data_iterator, model, optimizer, reference_model
            )
    collect_loss_for_unit_test(losses["lm_loss"])
    return losses, model.skipped_steps - skipped_before


def collect_loss_for_unit_test(lm_ss: torch.Tensor) -> None:
    """Called with the loss of every step; does nothing unless somebody replaces it to listen in."""


def train_step_pipe(neox_args, timers, model, data_iterator) -> dict[str, torch.Tensor]:
    """One step of DeepSpeed's pipeline schedule."""
    loss = model.train_batch(data_iter=data_iterator)
    return {"lm_loss": loss, **(model.get_additional_losses() or {})}


def _train_step_sequential(neox_args, timers, data_iterator, model, optimizer, reference_model):
    micro_batches = []
    for _ in range(neox_args.gradient_accumulation_steps):
        timers("forward").start()
        loss, metrics = forward_step(
            data_iterator, model, neox_args, timers, is_train=True, reference_model=reference_model
        )
        timers("forward").stop()
        timers("backward").start()
        backward_step(neox_args, timers, optimizer, model, loss)
        timers("backward").stop()
        timers("optimizer").start()
        model.step()
        timers("optimizer").stop()
        micro_batches.append({"lm_loss": loss.detach(), **metrics})
    return mean_over_replicas(micro_batches)


def forward_step(
    data_iterator,
    model,
    neox_args,
    timers,
    return_logits: bool = False,
    is_train: bool = False,
    reference_model=None,
):
    """Loss of one micro-batch: (loss, metrics), or (loss, logits, metrics).

    A pipelined model evaluates one whole accumulation of micro-batches instead.
    """
    if neox_args.is_pipe_parallel:
        result = model.eval_batch(data_iterator, return_logits=return_logits)
        return (*result, {}) if return_logits else (result, {})
    timers("batch generator").start()
    inputs, targets = model.batch_function(next(data_iterator))
    timers("batch generator").stop()
    outputs = model(inputs)
    loss = model.objective.loss(outputs, targets)
    return (loss.value, outputs, loss.metrics) if return_logits else (loss.value, loss.metrics)


def backward_step(neox_args, timers, optimizer, model, loss: torch.Tensor) -> None:
    """Backward pass with gradient reduction at the accumulation boundary; DeepSpeed divides by the accumulation."""
    model.backward(loss)


def _save_if_due(neox_args, timers, model, state: TrainState, metrics: Metrics) -> None:
    if neox_args.save and is_save_iter(neox_args, state.iteration):
        saves.save(neox_args, timers, model, state, metrics)


def _validate_if_due(neox_args, timers, model, data_iterator, state: TrainState, metrics: Metrics) -> None:
    interval = neox_args.eval_interval
    # The end of training has a validation of its own.
    goes_on = state.iteration < neox_args.train_iters
    if not (state.do_valid and goes_on and interval and state.iteration % interval == 0):
        return
    timers("interval time").stop()
    evaluate_and_print_results(
        neox_args, f"iteration {state.iteration}", forward_step, data_iterator, model, state.iteration,
        timers=timers, metrics=metrics,
    )  # fmt: skip
    timers("interval time").start()


def _exit_due(neox_args, state: TrainState) -> bool:
    return bool(neox_args.exit_interval and state.iteration % neox_args.exit_interval == 0)


def _loss_scale(neox_args, model) -> float | None:
    return model.optimizer.loss_scale if neox_args.precision == "fp16" else None

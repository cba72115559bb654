"""The interval line of the console and the per-step values of the trackers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from megatron import mpu
from megatron.common import device
from megatron.common.console import human_duration, print_rank_0, warn
from megatron.common.lifeline import restarts_so_far
from megatron.logging.experts import balance_metrics
from megatron.logging.flops import (
    hardware_flops_per_iteration,
    human_readable_flops,
    model_flops_per_iteration,
)
from megatron.logging.metrics import Metrics
from megatron.logging.parameters import ParameterReport
from megatron.neox_arguments.curriculum import length_at, tokens_until

# Keys of the running totals that are not metrics.
ADVANCED, SKIPPED, NAN = "advanced iterations", "skipped iterations", "nan iterations"
# Parts of an iteration, of those timers that the training step has started.
TIMER_NAMES = ("forward", "backward", "optimizer", "batch generator", "gradient reduction", "stage exchange")


def training_log(
    neox_args,
    timers,
    loss_dict: dict[str, torch.Tensor],
    total_loss_dict: dict,
    learning_rate: float,
    iteration: int,
    loss_scale: float | None,
    report_memory_flag: bool,
    skipped_iter: int,
    model,
    optimizer,
    noise_scale_logger=None,
    metrics: Metrics | None = None,
    parameter_report: ParameterReport | None = None,
) -> bool:
    """Add a step to the running totals; every `log_interval` iterations print the interval and start anew.

    The losses stay on the device until the interval ends. `total_loss_dict` is the caller's, empty at first.
    Returns: whether memory still has to be reported.
    """
    _accumulate(total_loss_dict, loss_dict, skipped_iter)
    if iteration % neox_args.log_interval:
        return report_memory_flag
    interval = Interval.ended(neox_args, timers, iteration)
    values = _interval_means(total_loss_dict) | balance_metrics(neox_args, model)
    if noise_scale_logger is not None and (noise_scale := noise_scale_logger.noise_scale) is not None:
        values["noise scale"] = noise_scale
    # Collective, so asked for on ranks without trackers too.
    of_parameters = {} if parameter_report is None else parameter_report.tags()
    print_rank_0(_line(neox_args, iteration, interval, learning_rate, values, loss_scale, total_loss_dict))
    _warn_of_divergence(interval, total_loss_dict)
    if metrics is not None:
        tags = {f"train/{name.replace(' ', '_')}": value for name, value in values.items()}
        tags |= {"train/learning_rate": learning_rate, "train/loss_scale": loss_scale}
        tags |= {"train/grad_norm": _gradient_norm(model), **of_parameters}
        tags["runtime/consumed_tokens"] = _consumed_tokens(neox_args, model, iteration)
        metrics.log(tags | _runtime_tags(neox_args, interval), iteration)
    total_loss_dict.clear()
    if report_memory_flag:
        report_memory(f"after {iteration} iterations")
    _report_recomputation(neox_args.log_interval)
    if neox_args.wall_clock_breakdown and interval.times:
        times = "".join(f" | {name}: {1000 * value:.2f}" for name, value in interval.times.items())
        print_rank_0(f"time (ms){times}")
    return False


@dataclass(frozen=True)
class Interval:
    """The iterations since the last report.

    Attributes: first: its first iteration; lengths: tokens of the samples of each iteration; seconds, waited: what an
    iteration took, and of that the wait for data; times: seconds of each part of an iteration, as far as this rank has
    timed it; speed: what follows from the seconds, by the names of the runtime tags.
    """

    first: int
    lengths: list[int]
    seconds: float
    waited: float
    times: dict[str, float]
    speed: dict[str, float]

    @classmethod
    def ended(cls, neox_args, timers, last: int) -> "Interval":
        """The interval that has ended with an iteration; its timers start anew."""
        count = neox_args.log_interval
        first = last - count + 1
        seconds = timers("interval time").elapsed() / count
        lengths = [length_at(neox_args, step) for step in range(first, last + 1)]
        return cls(
            first,
            lengths,
            seconds,
            waited=timers("data wait").elapsed() / count,
            times=timers.seconds(list(TIMER_NAMES), normalizer=count, reset=True),
            speed=_speed(neox_args, seconds, lengths),
        )


def _warn_of_divergence(interval: Interval, totals: dict) -> None:
    # Skipped steps leave the weights as they were, however bad the loss.
    if int(totals.get(NAN, 0)) == len(interval.lengths) and not totals[SKIPPED]:
        warn(
            f"since iteration {interval.first} or before the loss is not a number: training "
            "has diverged; stop it, lower the learning rate, and go on from an earlier checkpoint"
        )


def _gradient_norm(model) -> float | None:
    """L2 norm of all gradients of the last step before clipping, where clipping or the optimizer has measured it."""
    norm = model.get_global_grad_norm() if hasattr(model, "get_global_grad_norm") else None
    return None if norm is None else float(norm)


def _consumed_tokens(neox_args, model, iteration: int) -> float:
    """Tokens trained on since iteration 0; up to the one that was loaded with the batch size of that time."""
    loaded = getattr(model, "loaded_iteration", 0)
    batch_before = model.samples_before / loaded if loaded else 0.0
    here, there = tokens_until(neox_args, iteration), tokens_until(neox_args, loaded)
    return batch_before * there + neox_args.train_batch_size * (here - there)


def _runtime_tags(neox_args, interval: Interval) -> dict[str, float]:
    tags = {f"runtime/{name}": value for name, value in interval.speed.items()}
    tags |= {"runtime/iteration_time": interval.seconds, "runtime/data_wait": interval.waited}
    if neox_args.curriculum_learning:
        tags["curriculum_seqlen"] = interval.lengths[-1]
    tags |= {f"memory/{name.replace(' ', '_')}": value for name, value in device.memory_stats().items()}
    return tags | {f"timers/{name}": value for name, value in interval.times.items()}


def _report_recomputation(iterations: int) -> None:
    """Print what profile_backward has measured on this rank."""
    seconds = mpu.backward_seconds()
    if seconds:
        times = "".join(f" | {label}: {1000 * value / iterations:.2f}" for label, value in seconds.items())
        print_rank_0(f"recomputation and backward pass (ms per iteration){times}")


def report_memory(name: str) -> None:
    """Print this process's device memory in MB."""
    stats = device.memory_stats()
    print_rank_0(
        f"{name} memory (MB)" + "".join(f" | {key}: {value / 1e6:.1f}" for key, value in stats.items())
    )


def _accumulate(totals: dict, losses: dict[str, torch.Tensor], skipped: int) -> None:
    totals[ADVANCED] = totals.get(ADVANCED, 0) + 1 - skipped
    totals[SKIPPED] = totals.get(SKIPPED, 0) + skipped
    if "lm_loss" in losses:
        totals[NAN] = totals.get(NAN, 0) + losses["lm_loss"].isnan().int()
    if not skipped:
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.detach()


def _interval_means(totals: dict) -> dict[str, float]:
    steps = max(1, totals[ADVANCED])
    return {
        name: float(total) / steps for name, total in totals.items() if name not in (ADVANCED, SKIPPED, NAN)
    }


def _speed(neox_args, seconds: float, lengths: list[int]) -> dict[str, float]:
    """lengths: of the samples of each iteration of the interval, tokens."""
    samples = neox_args.train_batch_size / seconds
    devices = seconds * neox_args.world_size
    model_flops = _mean(lengths, partial(model_flops_per_iteration, neox_args)) / devices
    hardware_flops = _mean(lengths, partial(hardware_flops_per_iteration, neox_args)) / devices
    speed = {
        "samples_per_sec": samples,
        "steps_per_sec": 1.0 / seconds,
        "tokens_per_sec": samples * sum(lengths) / len(lengths),
        "flops_per_sec_per_gpu": hardware_flops,
    }
    if neox_args.peak_theoretical_tflops:
        peak = neox_args.peak_theoretical_tflops * 1e12
        speed["model_flops_utilization"] = 100 * model_flops / peak
        speed["hardware_flops_utilization"] = 100 * hardware_flops / peak
    return speed


def _mean(lengths: list[int], count: Callable[[int], float]) -> float:
    """Mean of count(length); a curriculum has few different lengths."""
    counted = {length: count(length) for length in set(lengths)}
    return sum(counted[length] for length in lengths) / len(lengths)


def _line(
    neox_args, iteration: int, interval: Interval, learning_rate: float, values, loss_scale, totals
) -> str:
    seconds, speed = interval.seconds, interval.speed
    fields = [
        f" samples/sec: {speed['samples_per_sec']:.3f}",
        f" iteration {iteration:8d}/{neox_args.train_iters:8d}",
        f" elapsed time per iteration (ms): {1000 * seconds:.1f}",
        f" learning rate: {learning_rate:.3E}",
        f" approx flops per GPU: {human_readable_flops(speed['flops_per_sec_per_gpu'])}",
    ]
    if "model_flops_utilization" in speed:
        mfu, hfu = speed["model_flops_utilization"], speed["hardware_flops_utilization"]
        fields.append(f" MFU: {mfu:.2f}% | HFU: {hfu:.2f}%")
    fields += [f" {name}: {value:.6E}" for name, value in values.items()]
    if neox_args.precision == "fp16" and loss_scale is not None:
        fields.append(f" loss scale: {loss_scale:.1f}")
    left = (neox_args.train_iters - iteration) * seconds
    fields += [
        f" number of skipped iterations: {totals[SKIPPED]:3d}",
        f" number of nan iterations: {int(totals.get(NAN, 0)):3d}",
        f" tokens/sec: {speed['tokens_per_sec']:,.0f}",
        f" data wait (ms): {1000 * interval.waited:.1f}",
        f" time left: {human_duration(left)}",
    ]
    return " |".join(fields) + " |"


def perplexity(loss: float) -> float:
    """exp(loss), infinite where it overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def tags_of_start(neox_args, seconds: float) -> dict[str, float]:
    """What every start of a run logs first; an iteration above 0 says that the run goes on.

    Args: seconds: since the process began.
    """
    return {
        "runtime/devices": neox_args.world_size,
        "runtime/startup_time": seconds,
        "runtime/restarts": restarts_so_far(),
    }

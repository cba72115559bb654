"""The interval line of the console and the per-step values of the trackers."""

import math
from collections.abc import Callable
from functools import partial

import torch

from megatron import mpu
from megatron.common import device
from megatron.common.console import human_duration, print_rank_0, warn
from megatron.logging.experts import balance_metrics
from megatron.logging.flops import (
    hardware_flops_per_iteration,
    human_readable_flops,
    model_flops_per_iteration,
)
from megatron.logging.metrics import Metrics
from megatron.logging.parameters import ParameterReport
from megatron.neox_arguments.curriculum import length_at

# Keys of the running totals that are not metrics.
ADVANCED, SKIPPED, NAN = "advanced iterations", "skipped iterations", "nan iterations"
TIMER_NAMES = ("forward", "backward", "optimizer", "batch generator")


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
    values = _interval_means(total_loss_dict) | balance_metrics(neox_args, model)
    seconds = timers("interval time").elapsed() / neox_args.log_interval
    waited = timers("data wait").elapsed() / neox_args.log_interval
    tags = {} if parameter_report is None else parameter_report.tags()
    if noise_scale_logger is not None and (noise_scale := noise_scale_logger.noise_scale) is not None:
        values["noise scale"] = noise_scale
    first = iteration - neox_args.log_interval + 1
    lengths = [length_at(neox_args, step) for step in range(first, iteration + 1)]
    speed = _speed(neox_args, seconds, lengths)
    print_rank_0(
        _line(
            neox_args, iteration, seconds, waited, learning_rate, values, loss_scale, speed, total_loss_dict
        )
    )
    # Skipped steps leave the weights as they were, however bad the loss.
    if int(total_loss_dict.get(NAN, 0)) == neox_args.log_interval and not total_loss_dict[SKIPPED]:
        warn(
            f"since iteration {first} or before the loss is not a number: training "
            "has diverged; stop it, lower the learning rate, and go on from an earlier checkpoint"
        )
    if metrics is not None:
        tags |= {f"train/{name.replace(' ', '_')}": value for name, value in values.items()}
        tags |= {"train/learning_rate": learning_rate, "train/loss_scale": loss_scale}
        tags |= {f"runtime/{name}": value for name, value in speed.items()}
        tags |= {"runtime/iteration_time": seconds, "runtime/data_wait": waited}
        if neox_args.curriculum_learning:
            tags["curriculum_seqlen"] = lengths[-1]
        times = timers.seconds(list(TIMER_NAMES), normalizer=neox_args.log_interval)
        tags |= {f"timers/{name}": value for name, value in times.items()}
        metrics.log(tags, iteration)
    total_loss_dict.clear()
    if report_memory_flag:
        report_memory(f"after {iteration} iterations")
    _report_recomputation(neox_args.log_interval)
    if neox_args.wall_clock_breakdown:
        timers.log(list(TIMER_NAMES), normalizer=neox_args.log_interval)
    return False


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


def _line(neox_args, iteration, seconds, waited, learning_rate, values, loss_scale, speed, totals) -> str:
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
        f" data wait (ms): {1000 * waited:.1f}",
        f" time left: {human_duration(left)}",
    ]
    return " |".join(fields) + " |"


def perplexity(loss: float) -> float:
    """exp(loss), infinite where it overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf

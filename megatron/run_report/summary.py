"""A run in a few numbers."""

import math
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from megatron.common.console import human_duration
from megatron.run_report.records import Run

NONE = "–"


@dataclass(frozen=True)
class Fact:
    """A number of the summary as text, and what to know about it."""

    label: str
    value: str = NONE
    detail: str = ""


def facts(run: Run) -> list[Fact]:
    """The same labels in the same order for every run."""
    return [
        _progress(run),
        _loss(run),
        _validation(run),
        _test(run),
        _tokens(run),
        _time(run),
        _speed(run),
        _utilisation(run),
        _memory(run),
        _data(run),
        _saves(run),
        _evaluations(run),
        _restarts(run),
    ]


def worth_showing(all_facts: list[list[Fact]]) -> list[int]:
    """Numbers of the facts that a run has something to say about."""
    return [
        n for n, column in enumerate(zip(*all_facts, strict=True)) if any(f.value != NONE for f in column)
    ]


def diverged_at(run: Run) -> int | None:
    """First iteration of the last stretch of losses, to the end, that are infinite or not a number."""
    loss = run["train/lm_loss"]
    if not len(loss) or math.isfinite(loss.values[-1]):
        return None
    finite = np.flatnonzero(np.isfinite(loss.values))
    return int(loss.iterations[finite[-1] + 1 if len(finite) else 0])


def _progress(run: Run) -> Fact:
    last, length = run.last_iteration, run.config.get("train_iters")
    if not run.series:
        return Fact("Iterations", "0", "nothing has been logged yet")
    if type(length) is not int or length <= 0:
        return Fact("Iterations", f"{last:,}")
    detail = "complete" if last >= length else f"{100 * last / length:.0f} % of {length:,}"
    return Fact("Iterations", f"{last:,}", detail)


def _loss(run: Run) -> Fact:
    loss = run["train/lm_loss"]
    if not len(loss):
        return Fact("Training loss")
    if (since := diverged_at(run)) is not None:
        return Fact("Training loss", "not finite", f"diverged, since {since:,} or before")
    return Fact("Training loss", f"{loss.values[-1]:.4f}", f"at {int(loss.iterations[-1]):,}")


def _validation(run: Run) -> Fact:
    loss = run["validation/lm_loss"].finite()
    if not len(loss):
        return Fact("Best validation loss")
    best = int(np.argmin(loss.values))
    return Fact("Best validation loss", f"{loss.values[best]:.4f}", f"at {int(loss.iterations[best]):,}")


def _test(run: Run) -> Fact:
    loss = run["test/lm_loss"]
    return Fact("Test loss", f"{loss.values[-1]:.4f}") if len(loss) else Fact("Test loss")


def _tokens(run: Run) -> Fact:
    tokens = run["runtime/consumed_tokens"]
    return Fact("Tokens", quantity(float(tokens.values[-1]))) if len(tokens) else Fact("Tokens")


def _time(run: Run) -> Fact:
    if not len(run.seconds):
        return Fact("Running time")
    ended = moment(run.last_time)
    return Fact(
        "Running time", human_duration(float(run.seconds.values[-1])), f"until {ended}" if ended else ""
    )


def _speed(run: Run) -> Fact:
    speed = run["runtime/tokens_per_sec"].finite()
    if not len(speed):
        return Fact("Tokens per second")
    devices = run.starts[-1].devices if run.starts else None
    detail = "" if devices is None else f"on {devices:,} device{'s' * (devices != 1)}"
    return Fact("Tokens per second", quantity(float(np.median(speed.values))), detail)


def _utilisation(run: Run) -> Fact:
    used = run["runtime/model_flops_utilization"].finite()
    if not len(used):
        return Fact("MFU")
    hardware = run["runtime/hardware_flops_utilization"].finite()
    detail = f"HFU {np.median(hardware.values):.1f} %" if len(hardware) else ""
    return Fact("MFU", f"{np.median(used.values):.1f} %", detail)


def _memory(run: Run) -> Fact:
    peak, reserved = run["memory/max_allocated"].finite(), run["memory/max_reserved"].finite()
    if not len(peak):
        return Fact("Peak memory")
    used = size(float(peak.values.max()))
    held = size(float(reserved.values.max())) if len(reserved) else used
    return Fact("Peak memory", used, f"{held} reserved" if held != used else "")


def _data(run: Run) -> Fact:
    waited, taken = run["runtime/data_wait"].finite(), run["runtime/iteration_time"].finite()
    if not len(waited) or not taken.values.sum() > 0:
        return Fact("Waiting for data")
    share = min(1.0, waited.values.mean() / taken.values.mean())
    return Fact("Waiting for data", percent(share), f"{short_time(float(waited.values.mean()))} an iteration")


def _saves(run: Run) -> Fact:
    return _stalls(run, "Checkpoint stalls", "runtime/save_stall", "save")


def _evaluations(run: Run) -> Fact:
    return _stalls(run, "Evaluations", "runtime/evaluation_time", "evaluation")


def _stalls(run: Run, label: str, tag: str, event: str) -> Fact:
    stalls = run[tag].finite()
    if not len(stalls):
        return Fact(label)
    total, count = float(stalls.values.sum()), len(stalls)
    detail = f"{count:,} {event}{'s' * (count != 1)}"
    if len(run.seconds) and run.seconds.values[-1] > 0:
        detail += f", {percent(min(1.0, total / float(run.seconds.values[-1])))} of time"
    return Fact(label, short_time(total), detail)


def _restarts(run: Run) -> Fact:
    if not run.starts:
        return Fact("Restarts")
    recorded = run["runtime/restarts"].finite()
    count = max(len(run.starts) - 1, int(recorded.values.max()) if len(recorded) else 0)
    lost = sum(start.lost for start in run.starts)
    return Fact("Restarts", f"{count:,}", f"{lost:,} iterations repeated" if lost else "")


def quantity(number: float) -> str:
    """`1_234_567 -> "1.23 M"`."""
    if not math.isfinite(number):
        return str(number)
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        # What would be shown as 1000 of a unit is 1 of the next.
        if abs(number) >= 0.9995 * 10**power:
            return f"{number / 10**power:.3g} {letter}"
    return f"{number:.3g}"


def size(number_of_bytes: float) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if number_of_bytes >= 1024**power:
            return f"{number_of_bytes / 1024**power:.1f} {unit}"
    return f"{number_of_bytes / 1024:.1f} KiB"


def percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def short_time(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.1f} s" if seconds < 100 else human_duration(seconds)


def moment(time: float | None) -> str:
    """Seconds since 1970 as a date, in UTC; "" for none, or one that no calendar has."""
    if time is None:
        return ""
    try:
        return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return ""

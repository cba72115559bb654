"""Which charts a report has, and their points."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from megatron.run_report.records import Run, Series

GIB, MILLISECOND = 2**-30, 1e3
MAX_OTHER_CHARTS, MAX_SCORES = 40, 12
SCORES = "eval/"


@dataclass(frozen=True)
class Chart:
    """A tag over iterations.

    Attributes: unit: of values times `factor`; log: a logarithmic axis makes sense; zero: a linear axis begins at 0;
    points: at most, for each of up to eight runs; ranges: where points stand for many values, show their range too;
    steps: single events rather than a curve.
    """

    key: str
    title: str
    tag: str
    unit: str = ""
    factor: float = 1.0
    log: bool = False
    zero: bool = False
    points: int = 300
    ranges: bool = False
    events: bool = False

    def of(self, run: Run) -> Series:
        series = run[self.tag]
        return Series(series.iterations, series.values * self.factor)


MAIN = (
    Chart("loss", "Training loss", "train/lm_loss", log=True, points=600, ranges=True),
    Chart("validation", "Validation loss", "validation/lm_loss", log=True),
    Chart("learning_rate", "Learning rate", "train/learning_rate", zero=True),
    Chart("gradient_norm", "Gradient norm", "train/grad_norm", log=True, points=600, ranges=True),
    Chart("throughput", "Tokens per second", "runtime/tokens_per_sec", zero=True),
    Chart("mfu", "Model FLOPs utilisation", "runtime/model_flops_utilization", "%", zero=True),
    Chart("flops", "FLOPs per second and device", "runtime/flops_per_sec_per_gpu", "FLOPs/s", zero=True),
    Chart("memory", "Peak memory", "memory/max_allocated", "GiB", GIB, zero=True),
    Chart("data_wait", "Waiting for data, per iteration", "runtime/data_wait", "ms", MILLISECOND, zero=True),
    Chart("save_stall", "Stalls of checkpoints", "runtime/save_stall", "s", zero=True, events=True),
    Chart("evaluation_time", "Evaluations", "runtime/evaluation_time", "s", zero=True, events=True),
)
# They are in the summary or behind the axes, or say the same as a chart above.
_NO_CHART = {
    "runtime/devices",
    "runtime/startup_time",
    "runtime/restarts",
    "runtime/consumed_tokens",
    "runtime/steps_per_sec",
    "runtime/samples_per_sec",
    "validation/lm_loss_ppl",
    "test/lm_loss_ppl",
    "memory/allocated",
    "memory/reserved",
}


def main_charts(runs: list[Run]) -> list[Chart]:
    """Those that a run has values for; FLOPs only where there is no utilisation; then the scores of eval_tasks."""
    found = [chart for chart in MAIN if any(len(run[chart.tag]) for run in runs)]
    if any(chart.key == "mfu" for chart in found):
        found = [chart for chart in found if chart.key != "flops"]
    scores = (tag for tag in _tags(runs) if tag.startswith(SCORES) and "stderr" not in tag)
    return found + [Chart(tag, tag.removeprefix(SCORES), tag) for tag in islice(scores, MAX_SCORES)]


def _tags(runs: list[Run]) -> list[str]:
    return sorted({tag for run in runs for tag in run.series})


def other_charts(runs: list[Run]) -> tuple[list[Chart], int]:
    """(charts of all other tags, as many as a page can hold; how many were left out)."""
    shown = _NO_CHART | {chart.tag for chart in (*MAIN, *main_charts(runs))}
    tags = [tag for tag in _tags(runs) if tag not in shown]
    charts = [Chart(tag, tag, tag, points=100) for tag in tags[:MAX_OTHER_CHARTS]]
    return charts, len(tags) - len(charts)


@dataclass(frozen=True)
class Points:
    """What is drawn of a series: x int64 [n], y float64 [n] (not a number: a gap), and the range of the values that a
    point stands for, where it is asked for and they are several; bad: iterations of infinite values and of such that
    are not numbers; last: the last value where the last point stands for several, else None."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    bad: np.ndarray
    last: float | None = None


def condensed(series: Series, limit: int, ranges: bool = False) -> Points:
    """At most `limit` points: the first value, and means of stretches of equally many others, up to the last iteration.

    The last value by itself would stand out of a noisy curve's means like something that has just happened.
    """
    finite = np.isfinite(series.values)
    bad = series.iterations[~finite]
    count = len(series)
    if count <= limit:
        return Points(series.iterations, np.where(finite, series.values, np.nan), None, None, bad)
    edges = np.concatenate([[0], np.linspace(1, count, max(limit, 3))[:-1].astype(np.int64)])
    sizes = np.diff(np.append(edges, count))
    known = np.add.reduceat(finite.astype(np.int64), edges)
    sums = np.add.reduceat(np.where(finite, series.values, 0.0), edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / known
    low = high = None
    if ranges:
        low = np.minimum.reduceat(np.where(finite, series.values, np.inf), edges)
        high = np.maximum.reduceat(np.where(finite, series.values, -np.inf), edges)
        low, high = np.where(known, low, np.nan), np.where(known, high, np.nan)
    middles = np.add.reduceat(series.iterations, edges) // sizes
    middles[-1] = series.iterations[-1]
    return Points(middles, means, low, high, bad, float(series.values[-1]))


def axes(run: Run, limit: int = 300) -> tuple[list[int], list[float] | None, list[float] | None]:
    """(iterations, tokens at each, seconds of running at each), by which other horizontal axes are reckoned; None
    where the run has not recorded it."""
    tokens, seconds = run["runtime/consumed_tokens"], run.seconds
    knots = np.unique(np.concatenate([tokens.iterations, seconds.iterations, [0]]))
    if len(knots) > limit:
        knots = knots[np.unique(np.linspace(0, len(knots) - 1, limit).astype(np.int64))]
    return knots.tolist(), _at(knots, tokens, begins_at_zero=True), _at(knots, seconds)


def _at(knots: np.ndarray, series: Series, begins_at_zero: bool = False) -> list[float] | None:
    series = series.finite()
    if not len(series):
        return None
    x, y = series.iterations, series.values
    if begins_at_zero and x[0] > 0:
        x, y = np.insert(x, 0, 0), np.insert(y, 0, 0.0)
    return np.interp(knots, x, y).tolist()


def scale_of_limits(runs: int) -> float:
    """By how much each run may have more points, or must have fewer, than a chart's `points` say."""
    return min(2.5, 8 / max(1, runs))


def all_points(charts: Iterable[Chart], runs: list[Run]) -> dict[tuple[str, int], Points]:
    """By (key of the chart, number of the run); runs without values are left out."""
    scale = scale_of_limits(len(runs))
    return {
        (chart.key, number): condensed(chart.of(run), max(20, int(chart.points * scale)), chart.ranges)
        for chart in charts
        for number, run in enumerate(runs)
        if len(run[chart.tag])
    }

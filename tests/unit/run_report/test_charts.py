"""Few points say what many values did."""

import numpy as np
import pytest

from megatron.run_report.charts import axes, condensed, main_charts, other_charts
from megatron.run_report.records import Run, Series, Start
from megatron.run_report.summary import diverged_at, facts, quantity, short_time


def series(values, first=1) -> Series:
    values = np.asarray(values, np.float64)
    return Series(np.arange(first, first + len(values)), values)


def run_of(**tags) -> Run:
    return Run("run", None, series={tag.replace("__", "/"): series(values) for tag, values in tags.items()})


def test_few_values_stay_as_they_are():
    points = condensed(series([3.0, 2.0, 1.0]), 10, ranges=True)
    assert points.x.tolist() == [1, 2, 3] and points.y.tolist() == [3.0, 2.0, 1.0]
    assert points.low is None and points.bad.tolist() == []


def test_many_values_keep_their_mean_their_range_and_both_ends():
    values = np.random.default_rng(0).normal(size=1000)
    values[500], values[-1] = 50.0, 9.0
    points = condensed(series(values), 100, ranges=True)
    assert len(points.y) <= 100
    assert (points.x[0], points.y[0], points.x[-1], points.last) == (1, values[0], 1000, 9.0)
    # The last value is told, and among the means it is one of several.
    assert points.y[-1] < 3.0
    # The stretches share all values but the first evenly.
    assert points.y[1:].mean() == pytest.approx(values[1:].mean(), abs=1e-2)
    assert points.high.max() == 50.0 and points.low.min() == values.min()
    assert (points.low <= points.y).all() and (points.y <= points.high).all()
    assert (np.diff(points.x) > 0).all()


def test_values_that_are_no_numbers_make_gaps_and_are_listed():
    values = np.ones(1000)
    values[300:600] = np.nan
    values[650] = np.inf
    points = condensed(series(values), 50, ranges=True)
    assert np.isnan(points.y).any() and np.nanmax(points.y) == np.nanmax(points.high) == 1.0
    assert points.bad.tolist() == [*range(301, 601), 651]


def test_tokens_and_running_time_are_reckoned_from_iterations():
    run = run_of(runtime__consumed_tokens=[64.0, 128.0, 192.0])
    assert axes(run) == ([0, 1, 2, 3], [0.0, 64.0, 128.0, 192.0], None)


def test_flops_have_a_chart_only_where_there_is_no_utilisation():
    slow, known = run_of(runtime__flops_per_sec_per_gpu=[1.0]), run_of(runtime__model_flops_utilization=[1.0])
    assert [chart.key for chart in main_charts([slow])] == ["flops"]
    assert [chart.key for chart in main_charts([slow, known])] == ["mfu"]


def test_other_tags_have_charts_as_far_as_the_page_can_hold_them():
    run = run_of(train__lm_loss=[1.0], **{f"train__extra_{number:02d}": [1.0] for number in range(50)})
    charts, left_out = other_charts([run])
    assert [chart.tag for chart in charts[:2]] == ["train/extra_00", "train/extra_01"]
    assert (len(charts), left_out) == (40, 10)


def test_scores_of_tasks_are_among_the_main_charts_without_their_errors():
    run = run_of(train__lm_loss=[1.0], eval__piqa_acc=[0.5], eval__piqa_acc_stderr=[0.01])
    assert [chart.title for chart in main_charts([run])] == ["Training loss", "piqa_acc"]
    assert [chart.tag for chart in other_charts([run])[0]] == ["eval/piqa_acc_stderr"]


def test_a_loss_that_ends_as_no_number_has_diverged_since_then():
    assert diverged_at(run_of(train__lm_loss=[2.0, np.nan, 2.0, np.nan, np.inf])) == 4
    assert diverged_at(run_of(train__lm_loss=[np.nan])) == 1
    assert diverged_at(run_of(train__lm_loss=[np.nan, 2.0])) is None


def test_the_summary_says_what_the_curves_say():
    run = run_of(
        train__lm_loss=[5.0, 4.0, 3.5, 3.25],
        validation__lm_loss=[4.0, np.nan, 3.0, 3.5],
        runtime__tokens_per_sec=[1.0, 2000.0, 2500.0, 2250.0],
        runtime__model_flops_utilization=[1.0, 40.0, 42.0, 41.0],
        runtime__data_wait=[0.1] * 4,
        runtime__iteration_time=[0.4] * 4,
        runtime__save_stall=[1.0, 2.0],
        runtime__consumed_tokens=[1e9, 2e9, 3e9, 4e9],
        runtime__restarts=[0.0, 3.0],
        memory__max_allocated=[2.0**30, 2.0**31],
    )  # fmt: skip
    run.config, run.seconds, run.starts = (
        {"train_iters": 8},
        series([10.0, 20.0, 30.0, 60.0]),
        [Start(0, None, devices=4)],
    )
    said = {fact.label: (fact.value, fact.detail) for fact in facts(run)}
    assert said["Iterations"] == ("4", "50 % of 8")
    assert said["Training loss"] == ("3.2500", "at 4")
    assert said["Best validation loss"] == ("3.0000", "at 3")
    assert said["Tokens"][0] == "4 B" and said["Running time"][0] == "0:01:00"
    assert said["Tokens per second"] == ("2.12 k", "on 4 devices")
    assert said["MFU"][0] == "40.5 %"
    assert said["Peak memory"][0] == "2.0 GiB"
    assert said["Waiting for data"] == ("25.0 %", "100 ms an iteration")
    assert said["Checkpoint stalls"] == ("3.0 s", "2 saves, 5.0 % of time")
    assert said["Restarts"] == ("3", "")
    assert said["Test loss"] == ("–", "")


def test_numbers_are_short():
    assert [quantity(n) for n in (0.0, 999.0, 1234.0, 999_999.0, 3e11)] == [
        "0",
        "999",
        "1.23 k",
        "1 M",
        "300 B",
    ]
    assert [short_time(s) for s in (0.0123, 12.34, 7200.0)] == ["12.3 ms", "12.3 s", "2:00:00"]

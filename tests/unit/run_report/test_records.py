"""A run is one curve, however its metrics were written."""

import json

import numpy as np
import pytest

from megatron.common.errors import DataError
from megatron.run_report.records import read_runs
from tests.unit.run_report.logs import start, step, write_log


def read(*folders):
    return read_runs([str(folder) for folder in folders])


RESUMED = [
    start(0, 1000.0),
    *(step(n, 1000.0 + n, 8.0) for n in (10, 20, 30)),
    {"iteration": 20, "time": 1020.5, "runtime/save_stall": 0.5},
    start(20, 5000.0),
    *(step(n, 4980.0 + n, 7.0) for n in (30, 40)),
]
RESUMED[3], RESUMED[4] = RESUMED[4], RESUMED[3]  # the save was before iteration 30


def test_what_a_resumed_run_repeats_counts_once_and_the_later_time(tmp_path):
    (run,) = read(write_log(tmp_path / "run", RESUMED))
    loss = run["train/lm_loss"]
    assert loss.iterations.tolist() == [10, 20, 30, 40]
    assert loss.values.tolist() == [8.0, 8.0, 7.0, 7.0]
    assert [(s.iteration, s.lost, s.devices, s.startup) for s in run.starts] == [
        (0, 0, 2, 3.0),
        (20, 10, 2, 3.0),
    ]
    assert run["runtime/save_stall"].values.tolist() == [0.5]


def test_running_time_leaves_out_what_is_between_two_starts(tmp_path):
    (run,) = read(write_log(tmp_path / "run", RESUMED))
    at = dict(zip(run.seconds.iterations.tolist(), run.seconds.values.tolist(), strict=True))
    # The first start ran for 30 seconds, the last ten of which were lost.
    assert (at[10], at[30], at[40]) == (10.0, 30.0 + 10.0, 30.0 + 20.0)


def test_without_marks_of_starts_a_step_back_is_one(tmp_path):
    losses = [step(n, 1.0, 8.0) for n in (10, 20, 30)] + [step(n, 2.0, 7.0) for n in (20, 30, 40)]
    (run,) = read(write_log(tmp_path / "run", losses))
    assert run["train/lm_loss"].values.tolist() == [8.0, 7.0, 7.0, 7.0]
    assert [(s.iteration, s.lost) for s in run.starts] == [(0, 0), (10, 20)]


def test_an_evaluation_afterwards_is_no_part_of_the_training(tmp_path):
    scores = {"iteration": 20, "time": 9e9, "eval/task_acc": 0.5}
    (run,) = read(write_log(tmp_path / "run", [*RESUMED, scores]))
    assert run["eval/task_acc"].iterations.tolist() == [20] and run["eval/task_acc"].values.tolist() == [0.5]
    assert run["train/lm_loss"].iterations.tolist() == [10, 20, 30, 40]
    assert len(run.starts) == 2 and run.seconds.values[-1] == 50.0 and run.last_time == 5020.0


def test_a_start_from_nothing_replaces_an_earlier_run_in_the_file(tmp_path):
    old = [start(0, 1.0), step(10, 2.0, 9.0), step(20, 3.0, 9.0)]
    (run,) = read(write_log(tmp_path / "run", [*old, start(0, 100.0), step(10, 110.0, 4.0)]))
    assert run["train/lm_loss"].values.tolist() == [4.0]
    assert len(run.starts) == 1 and run.replaced == 3 and run.seconds.values[-1] == 10.0


def test_a_job_that_the_launcher_starts_again_from_nothing_is_the_same_run(tmp_path):
    again = {**start(0, 100.0), "runtime/restarts": 1.0}
    (run,) = read(
        write_log(tmp_path / "run", [start(0, 1.0), step(10, 11.0, 9.0), again, step(10, 110.0, 4.0)])
    )
    assert run["train/lm_loss"].values.tolist() == [4.0] and run.replaced == 0
    assert [s.lost for s in run.starts] == [0, 10] and run.seconds.values[-1] == 20.0


@pytest.mark.parametrize(
    "line",
    ['{"iteration": 3, "train/lm_lo', "[3]", "{}", '{"iteration": "3"}', '{"iteration": 3, "time": "now"}', "\0\xff",
     '{"iteration": -1}', '{"iteration": 3, "x": 1' + "0" * 400 + "}", "[" * 100_000],
)  # fmt: skip
def test_a_line_that_is_no_record_is_counted_and_left_out(tmp_path, line):
    (run,) = read(write_log(tmp_path / "run", [step(1, 1.0, 4.0), step(2, 2.0, 3.0)], tail=line))
    assert run["train/lm_loss"].values.tolist() == [4.0, 3.0] and run.unread == 1


def test_values_of_single_parameters_and_other_kinds_are_left_out(tmp_path):
    record = step(1, 1.0, float("nan"), note="text", flag=True, nothing=None)
    (run,) = read(write_log(tmp_path / "run", [record]))
    assert np.isnan(run["train/lm_loss"].values).tolist() == [True]
    assert not {"note", "flag", "nothing"} & set(run.series)
    assert not any(tag.startswith("gradient_norms") for tag in run.series)


def test_an_empty_file_is_a_run_without_values(tmp_path):
    (run,) = read(write_log(tmp_path / "run", []))
    assert run.series == {} and run.last_iteration == 0 and run.config == {}


def test_names_are_as_short_as_they_can_be(tmp_path):
    folders = [write_log(tmp_path / name, []) for name in ("a/logs", "b/logs", "other")]
    assert [run.name for run in read(*folders)] == [
        "a/logs",
        "b/logs",
        "tmp/other".replace("tmp", tmp_path.name),
    ]
    assert [run.name for run in read(folders[2])] == ["other"]
    assert [run.name for run in read(folders[2], folders[2])] == ["other", "other"]


def test_a_folder_of_checkpoints_leads_to_the_log_dir_of_its_run(tmp_path):
    write_log(tmp_path / "logs", [step(1, 1.0, 4.0)], {"seed": 5})
    checkpoint = tmp_path / "runs" / "saved" / "global_step1"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text("global_step1")
    (checkpoint / "neox_args.json").write_text(json.dumps({"log_dir": "logs"}))
    (run,) = read(checkpoint.parent)
    assert run.config == {"seed": 5} and len(run["train/lm_loss"]) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "does not exist"), ("empty", "has no metrics.jsonl")]
)
def test_a_folder_without_metrics_is_named(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name} {message}") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)

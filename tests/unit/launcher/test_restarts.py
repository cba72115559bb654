"""A failed job is started again where that can help, and only there."""

from pathlib import Path

import pytest

from megatron.common.errors import LaunchError
from megatron.launcher import restarts
from megatron.launcher.failures import Outcome
from megatron.launcher.job import Job

JOB = Job("train.py", ("first",), {"localhost": [0]}, True, False, "127.0.0.1", 29500)
FAILED = Outcome(137, may_recover=True)


class Starts:
    """Stands for the running of a job: each start writes a checkpoint (or None) and ends with an outcome."""

    def __init__(self, folder: Path, *starts: tuple[int | None, Outcome]):
        self._folder, self._starts = folder, list(starts)
        self.arguments: list[tuple[str, ...]] = []
        self.counts: list[int] = []

    def run(self, job: Job) -> Outcome:
        self.arguments.append(job.arguments)
        self.counts.append(job.restarts)
        saved, outcome = self._starts.pop(0)
        if saved is not None:
            (self._folder / "latest").write_text(f"global_step{saved}")
        return outcome

    def all(self, limit: int, check=lambda job: None) -> int:
        return restarts.run_with_restarts(JOB, self.run, check, limit, str(self._folder), lambda: ["onwards"])


def test_a_failed_job_goes_on_from_its_newest_checkpoint(tmp_path, capsys):
    starts = Starts(tmp_path, (None, FAILED), (10, FAILED), (20, FAILED), (30, Outcome(0)))
    assert starts.all(limit=5) == 0
    assert starts.counts == [0, 1, 2, 3]
    assert starts.arguments == [("first",), ("first",), ("onwards",), ("onwards",)]
    told = capsys.readouterr().err
    assert "restart 1 of 5 (max_restarts), as at first" in told
    assert "restart 3 of 5 (max_restarts), from the checkpoint of iteration 20" in told


def test_checkpoints_of_an_earlier_run_are_not_gone_on_from(tmp_path):
    (tmp_path / "latest").write_text("global_step99")
    starts = Starts(tmp_path, (None, FAILED), (10, FAILED), (None, Outcome(0)))
    starts.all(limit=5)
    assert starts.arguments == [("first",), ("first",), ("onwards",)]


def test_there_are_no_more_restarts_than_asked_for(tmp_path):
    starts = Starts(tmp_path, (1, FAILED), (2, FAILED), (3, FAILED))
    assert starts.all(limit=2) == 137 and starts.counts == [0, 1, 2]
    assert Starts(tmp_path, (4, FAILED)).all(limit=0) == 137


def test_two_starts_in_a_row_without_a_new_checkpoint_are_the_end(tmp_path, capsys):
    starts = Starts(tmp_path, (10, FAILED), (None, FAILED), (None, FAILED))
    assert starts.all(limit=9) == 137 and starts.counts == [0, 1, 2]
    assert "two starts in a row have failed without a new checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("outcome", [Outcome(0), Outcome(1), Outcome(130)])
def test_mistakes_interrupts_and_successes_are_final(tmp_path, outcome):
    assert Starts(tmp_path, (10, outcome)).all(limit=9) == outcome.code


def test_hosts_and_ports_are_waited_for_but_not_forever(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(restarts, "_RETRY_SECONDS", 0.0)
    answers = [LaunchError("host 'node2' cannot be reached"), None]

    def check(job: Job) -> None:
        if answer := answers.pop(0):
            raise answer

    assert Starts(tmp_path, (1, FAILED), (2, Outcome(0))).all(1, check) == 0
    assert "waiting to start again: host 'node2' cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(restarts, "_RETURN_SECONDS", -1.0)
    answers[:] = [LaunchError("host 'node2' cannot be reached")]
    with pytest.raises(LaunchError, match="node2"):
        Starts(tmp_path, (3, FAILED)).all(1, check)

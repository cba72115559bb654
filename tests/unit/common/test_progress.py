"""Progress of long work."""

from megatron.common import console
from megatron.common.console import Progress


def lines_of(capsys, amounts, monkeypatch, seconds_per_update):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Progress(sum(amounts), "files", "copying") as progress:
        for amount in amounts:
            now[0] += seconds_per_update
            progress.update(amount)
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_every_few_seconds_and_one_at_the_end(capsys, monkeypatch):
    lines = lines_of(capsys, [1] * 25, monkeypatch, 1.0)
    assert lines == [
        "copying: 10 files of 25 files (40 %), 1 files/s, 0:00:15 left",
        "copying: 20 files of 25 files (80 %), 1 files/s, 0:00:05 left",
        "copying: 25 files of 25 files (100 %), 1 files/s, 0:00:00 left",
    ]


def test_the_last_line_is_not_repeated(capsys, monkeypatch):
    lines = lines_of(capsys, [3], monkeypatch, 30.0)
    assert lines == ["copying: 3 files of 3 files (100 %), 0.1 files/s, 0:00:00 left"]


def test_a_switched_off_progress_says_nothing(capsys):
    with Progress(2, "files", "copying", enabled=False) as progress:
        progress.update(2)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""

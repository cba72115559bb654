"""A tracker that fails is switched off; training goes on."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from megatron.logging import Metrics
from tests.common.paths import ROOT

NO_TRACKERS = {
    "log_dir": None, "save": None, "tensorboard_dir": None, "tensorboard_writer": None, "use_wandb": None,
    "use_comet": None, "all_config": {},
}  # fmt: skip


def metrics(**settings) -> Metrics:
    return Metrics(SimpleNamespace(**{**NO_TRACKERS, **settings}))


def test_values_go_to_a_line_per_step(tmp_path):
    sinks = metrics(log_dir=str(tmp_path))
    sinks.log({"loss": 2.0, "absent": None}, 3)
    sinks.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert re.fullmatch(r'\{"iteration": 3, "time": \d+\.\d+, "loss": 2.0\}\n', text)


def test_a_tracker_that_cannot_be_opened_is_switched_off(tmp_path, capfd):
    (tmp_path / "taken").write_text("")
    sinks = metrics(log_dir=str(tmp_path / "taken"))
    assert sinks.sinks == []
    assert "JsonLinesSink failed and is switched off" in capfd.readouterr().err
    sinks.log({"loss": 2.0}, 3)


def test_a_tracker_that_fails_later_is_switched_off(tmp_path, capfd):
    sinks = metrics(log_dir=str(tmp_path))
    sinks.sinks[0].close()
    sinks.log({"loss": 2.0}, 3)
    assert sinks.sinks == []
    assert "switched off" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_events_that_find_no_room_are_told_in_one_line(tmp_path):
    script = """
import sys
import time
from types import SimpleNamespace
from megatron.logging import Metrics
from megatron.neox_arguments.log_files import event_writer
from tests.unit.logging.test_metrics import NO_TRACKERS
import tensorboard.compat.tensorflow_stub.io.gfile as files
writer = event_writer(sys.argv[1])
time.sleep(0.1)
files.LocalFileSystem._write = lambda self, filename, content, mode: open("/dev/full", mode, buffering=0).write(content)
sinks = Metrics(SimpleNamespace(**{**NO_TRACKERS, "tensorboard_writer": writer, "all_config": {"seed": 1}}))
for step in range(3):
    sinks.log({"loss": 2.0}, step)
    time.sleep(0.1)
sinks.close()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: TensorBoardSink failed and is switched off: [Errno 28]")

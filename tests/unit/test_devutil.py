"""A method whose calls are measured does what it did before."""

import subprocess
import sys

import pytest

from megatron.devutil import Metric, monitor_method_cuda_wall_times
from tests.common.paths import ROOT


class Worker:
    def work(self, value: int) -> int:
        if value < 0:
            raise ValueError(value)
        return value + 1


def test_calls_are_counted_and_measured_and_errors_pass():
    worker, metric = Worker(), Metric("work")
    monitor_method_cuda_wall_times(metric, worker, "work")
    assert worker.work(value=1) == 2
    with pytest.raises(ValueError, match="-1"):
        worker.work(-1)
    assert metric.count == 2 and metric.total > 0 and metric.mean == metric.total / 2
    assert str(metric).startswith("work: 2 times, ")


def test_the_result_is_printed_when_the_program_ends():
    code = """
from megatron.devutil import Metric, monitor_method_cuda_wall_times
from tests.unit.test_devutil import Worker
worker = Worker()
monitor_method_cuda_wall_times(Metric("worked"), worker, "work")
worker.work(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("worked: 1 times, ")

"""Training that only overflows is ended; a single good step starts the count anew."""

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from megatron.common.errors import NeoXError
from megatron.engine.overflow import OverflowMonitor, explained_overflow


def test_fifty_skipped_steps_in_a_row_end_the_run():
    monitor = OverflowMonitor(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0))
    for _ in range(49):
        monitor.check(True)
    with pytest.raises(NeoXError, match="training has diverged"):
        monitor.check(True)


def test_a_loss_scale_that_cannot_be_lowered_is_told_without_a_traceback():
    scaler = DynamicLossScaler(1.0, 2, 1.0, delayed_shift=1, consecutive_hysteresis=False)
    with pytest.raises(NeoXError, match="even at the smallest loss scale: training has diverged"):
        with explained_overflow():
            scaler.update_scale(overflow=True)
    with pytest.raises(ZeroDivisionError), explained_overflow():
        raise ZeroDivisionError


def test_an_applied_step_in_between_starts_the_count_anew():
    monitor = OverflowMonitor(None, n=3)
    for skipped in (True, True, False, True, True):
        monitor.check(skipped)
    with pytest.raises(NeoXError):
        monitor.check(True)


def test_bf16_optimizer_is_left_alone():
    class BF16_Optimizer:
        pass

    monitor = OverflowMonitor(BF16_Optimizer(), n=1)
    for _ in range(3):
        monitor.check(True)
    assert monitor._in_a_row == 0

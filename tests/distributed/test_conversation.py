"""A conversation with a model on several processes: one of them has the terminal."""

import os
import signal
import time

import torch.distributed as dist

from megatron.generation import interactive
from tests.common.distributed import run_distributed


def _prompts_of_a_slow_typist():
    typed = iter(["first", "", None])

    def read(prompt_end, interrupt):
        time.sleep(0.3)
        return next(typed)

    interactive.HEARTBEAT_SECONDS = 0.02  # many of them while the person is typing
    interactive._read_prompt = read
    return [interactive._shared_prompt("\n", interactive._InterruptFlag()) for _ in range(3)]


def _interrupted_on(rank):
    with interactive._InterruptFlag() as interrupt:
        if dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGINT)
        return interrupt.shared(), interrupt.shared()


def test_every_rank_gets_the_prompts_and_the_end_however_long_the_typing_takes():
    assert run_distributed(_prompts_of_a_slow_typist, 3) == [["first", "", None]] * 3


def test_rank_0_decides_whether_a_sample_was_interrupted():
    assert run_distributed(_interrupted_on, 2, 0) == [(True, True)] * 2
    assert run_distributed(_interrupted_on, 2, 1) == [(False, False)] * 2

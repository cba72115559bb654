"""Rank 0 knows the tasks and asks; every rank computes.

So data sets are read once, metrics are counted once, and only rank 0 has to hold what the harness holds.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from megatron.common import activity
from megatron.common.errors import NeoXError
from megatron.engine.exchange import broadcast_json, broadcast_numbers, heartbeat
from megatron.evaluation.plan import Row, pack, unpack
from megatron.evaluation.worker import Continuations, Worker

HEARTBEAT_SECONDS = 30.0


class Team:
    """All ranks of the job, each with its Worker."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self._speaking = threading.Lock()
        self._at_one = True  # no rank is in the middle of a step

    def run(self, job: Callable[[], dict]) -> dict:
        """What `job` (called on rank 0 alone) returns, as JSON can hold it, on all ranks; collective.

        Raises: what `job` raises on rank 0; the others a NeoXError with the same words.
        """
        activity.beat("evaluation by tasks")
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return job()
        if dist.get_rank() != 0:
            return self._follow()
        try:
            # Ended before the last word: after that the others listen no more.
            with heartbeat(lambda: self._say("wait"), HEARTBEAT_SECONDS):
                result = job()
        except Exception as error:
            self._say("failed", str(error))
            raise
        self._say("finished", result)
        return result

    def score(self, rounds: list[list[Row]]) -> torch.Tensor:
        """Worker.score of all ranks, asked for by rank 0 within `run`."""
        with self._step("score"):
            broadcast_numbers(pack(rounds) if dist.is_initialized() else [])
            return self.worker.score(rounds)

    def generate(self, work: Continuations) -> list[str]:
        """Worker.generate of all ranks, asked for by rank 0 within `run`."""
        with self._step("generate", asdict(work)):
            return self.worker.generate(work)

    def _follow(self) -> dict:
        while True:
            action, value = broadcast_json(None)
            activity.pulse()
            if action == "score":
                self.worker.score(unpack(broadcast_numbers(None).tolist()))
            elif action == "generate":
                self.worker.generate(Continuations(**value))
            elif action == "failed":
                raise NeoXError(value)
            elif action == "finished":
                return value

    def _say(self, action: str, value: Any = None) -> None:
        """Tell the other ranks. Where a step has failed they wait in the middle of it, and end with the job."""
        with self._speaking:
            if self._at_one:
                activity.pulse()
                broadcast_json([action, value])

    @contextmanager
    def _step(self, action: str, value: Any = None) -> Iterator[None]:
        with self._speaking:
            self._at_one = False
            broadcast_json([action, value])
            yield
            self._at_one = True

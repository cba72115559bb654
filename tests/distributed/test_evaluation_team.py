"""Rank 0 leads an evaluation: its results and its mistakes reach all ranks."""

import time

from megatron.common.errors import ConfigError, NeoXError
from tests.common.distributed import run_distributed


def lead_and_fail() -> tuple[dict, str]:
    """(What a job of rank 0 gives, what its failure says) on this rank."""
    from megatron.evaluation import team

    team.HEARTBEAT_SECONDS = 0.001

    def slow_job() -> dict:
        time.sleep(0.2)  # heartbeats meanwhile
        return {"score": 0.5}

    def wrong_job() -> dict:
        raise ConfigError("eval_tasks: no such task")

    both = team.Team(worker=None)
    results = both.run(slow_job)
    try:
        both.run(wrong_job)
    except NeoXError as error:
        return results, str(error)
    raise AssertionError("the failure got lost")


def test_results_and_mistakes_of_rank_0_are_those_of_all_ranks():
    assert run_distributed(lead_and_fail, 2) == [({"score": 0.5}, "eval_tasks: no such task")] * 2

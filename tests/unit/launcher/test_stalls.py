"""Of a job in which nothing moves, those are named for whom the others wait (P34)."""

from dataclasses import replace

import pytest

from megatron.launcher.stalls import Standing, describe, slowest

WAITING = Standing(0, "node1", "training step, backward", 7, 61.0, "  File a\n", "all_reduce")


@pytest.mark.parametrize(
    ("changes", "slow"),
    [
        ({2: {"waits": None}}, [2]),
        ({1: {"has_started": False}, 2: {"waits": None}}, [1]),
        ({0: {"step": 6, "waits": None}, 1: {"is_frozen": True, "waits": None}}, [1]),
        ({0: {"step": 6}}, [0]),
        ({0: {"step": None}}, [0]),
        ({rank: {"waits": None} for rank in range(3)} | {1: {"waits": None, "step": 6}}, [1]),
        ({}, [0, 1, 2]),
    ],
)
def test_the_slowest_ranks_are_those_for_whom_the_others_wait(changes, slow):
    standings = [replace(WAITING, rank=rank, **changes.get(rank, {})) for rank in range(3)]
    assert [one.rank for one in slowest(standings)] == slow


def test_a_stall_names_rank_host_step_and_operation_and_shows_the_stack():
    stuck = replace(WAITING, rank=1, host="node2", waits=None, stack="  File b, line 3\n")
    assert describe([WAITING, stuck], 60) == (
        "nothing was finished for 60 s (watchdog_timeout): rank 1 on node2 does not go on (iteration 7, training step, "
        "backward); rank 0 on node1 waits in all_reduce\n"
        "rank 1 on node2, iteration 7, training step, backward, without progress for 61 s:\n"
        "  File b, line 3"
    )


def test_a_rank_that_does_not_answer_and_one_that_has_not_come_are_told_as_such():
    late = replace(WAITING, rank=1, host=None, has_started=False, stack=None, waits=None)
    assert "rank 1 does not go on (not started yet)" in describe([WAITING, late], 60)
    silent = replace(WAITING, rank=1, stack=None, waits=None)
    assert describe([WAITING, silent], 60).endswith("without progress for 61 s:\n  (it does not answer)")


def test_of_many_ranks_four_are_shown():
    text = describe([replace(WAITING, rank=rank) for rank in range(100)], 60)
    assert text.count("File a") == 4 and "nor do 96 others" in text

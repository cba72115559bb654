"""Processes that meet before the job does."""

import json
import os

import pytest

from megatron.common.errors import LaunchError
from megatron.common.hosts import free_port
from megatron.launcher import links
from tests.common.distributed import run_distributed


def _meeting(port, absent):
    os.environ["MASTER_PORT"] = str(port)
    links.MEETING_SECONDS = 1.0 if absent else 60.0
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank in absent:
        return None
    if not absent:
        store = links._meet(rank, size)
        hosts = json.loads(store.get("hosts"))
        store.set(f"left{rank}", "")
        if rank == 0:  # which has the store
            store.wait([f"left{other}" for other in range(size)])
        return len(hosts)
    with pytest.raises(LaunchError) as refusal:
        links._meet(rank, size)
    return str(refusal.value)


def test_every_rank_knows_the_hosts_of_all():
    assert run_distributed(_meeting, 2, free_port(), (), init=False) == [2, 2]


def test_ranks_that_do_not_come_are_named():
    first, second, _, _ = run_distributed(_meeting, 4, free_port(), (2, 3), init=False)
    assert first.startswith("ranks 2, 3 did not come to 127.0.0.1:")
    assert "rank 1: no meeting at 127.0.0.1:" in second

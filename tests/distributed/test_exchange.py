"""Plain values between ranks."""

import torch.distributed as dist

from megatron.engine.exchange import all_gather_json, broadcast_json
from tests.common.distributed import run_distributed

VALUES = [{"text": "grüße 🙂", "numbers": [1, 2.5, None]}, "short", ["x" * 5000, True]]


def _broadcast(src):
    return [broadcast_json(value if dist.get_rank() == src else None, src) for value in VALUES]


def _gather():
    return all_gather_json(VALUES[dist.get_rank()])


def test_one_ranks_values_reach_all():
    assert run_distributed(_broadcast, 3, 1) == [VALUES] * 3


def test_values_of_different_lengths_are_gathered_in_rank_order():
    assert run_distributed(_gather, 3) == [VALUES] * 3


def test_a_single_process_keeps_its_value():
    assert broadcast_json(VALUES[0]) == VALUES[0]
    assert all_gather_json(VALUES[0]) == [VALUES[0]]

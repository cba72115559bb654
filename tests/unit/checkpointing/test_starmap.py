"""The helper of GPT-NeoX that calls a function in other processes."""

import operator

from megatron.checkpointing import multiprocessing_starmap


def test_results_come_in_order_from_at_least_one_process(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert multiprocessing_starmap(operator.sub, [(5, 2), (1, 1), (0, 4)]) == [3, 0, -4]

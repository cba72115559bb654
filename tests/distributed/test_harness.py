"""The harness itself: what it returns, and that nothing can fail silently."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.common.distributed import DistributedTestError, run_distributed


def _gather_ranks(offset, scale=1):
    values = [torch.zeros(1, dtype=torch.int64) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(values, torch.tensor([torch.distributed.get_rank() * scale + offset]))
    return torch.cat(values)


def _environment(names):
    return (
        [os.environ.get(name) for name in names],
        torch.distributed.is_initialized(),
        torch.get_num_threads(),
    )


def _raise_on_rank(rank):
    if torch.distributed.get_rank() == rank:
        print("what rank", rank, "said before")
        raise KeyError("lost it")
    torch.distributed.barrier()


def _die_on_rank(rank):
    if torch.distributed.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def _hang_with_child(path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(path, "w") as file:
        file.write(str(child.pid))
    time.sleep(600)


def _join_from_environment():
    torch.distributed.init_process_group("gloo")
    return torch.distributed.get_world_size()


def test_results_come_back_in_rank_order_after_a_collective():
    first, second = run_distributed(_gather_ranks, 2, 5, scale=10)
    assert first.tolist() == second.tolist() == [5, 15]


def test_ranks_see_the_launcher_environment_and_one_thread():
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "EXTRA"]
    results = run_distributed(_environment, 2, names, init=False, env={"EXTRA": "given"})
    assert [values for values, _, _ in results] == [
        ["0", "0", "2", "1", "given"],
        ["1", "1", "2", "1", "given"],
    ]
    assert all(not initialised and threads == 1 for _, initialised, threads in results)


def test_a_group_can_be_initialised_from_the_environment():
    assert run_distributed(_join_from_environment, 2, init=False) == [2, 2]


def test_an_exception_in_one_rank_fails_the_caller_with_traceback_and_output():
    with pytest.raises(DistributedTestError, match="lost it") as caught:
        run_distributed(_raise_on_rank, 2, 1)
    assert caught.value.exceptions[1] == "builtins.KeyError: 'lost it'"
    assert "what rank 1 said before" in str(caught.value)


def test_a_killed_rank_fails_the_caller():
    with pytest.raises(DistributedTestError, match="rank 1 died with exit code -9"):
        run_distributed(_die_on_rank, 2, 1)


def test_a_hang_fails_the_caller_and_leaves_no_process(tmp_path):
    path = tmp_path / "pid"
    with pytest.raises(DistributedTestError, match="did not finish"):
        run_distributed(_hang_with_child, 1, str(path), timeout=3)
    pid = int(path.read_text())
    with open(f"/proc/{pid}/stat") if os.path.exists(f"/proc/{pid}/stat") else open(os.devnull) as file:
        state = file.read().split(") ")[-1][:1]
    assert state in ("", "Z")

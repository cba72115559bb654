"""A training in which one rank does not go on ends by itself and says where (P34)."""

import random

import pytest

from tests.common.runs import REPOSITORY, prepare_corpus, run_command, write_config

# Rank 1 stops within its third step: in Python, or in C code that never lets go of Python's lock.
SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
from megatron.common.errors import run_main

def forgets_to_go_on():
    {how}

def main():
    import train
    from megatron import training
    steps = []
    def listen(loss):
        steps.append(loss)
        if len(steps) == 3 and os.environ["RANK"] == "1":
            forgets_to_go_on()
    training.collect_loss_for_unit_test = listen
    return train.main()

run_main(main)
"""


@pytest.mark.parametrize(
    ("how", "others"),
    [
        ("time.sleep(1000)", "rank 0 waits in all_reduce"),
        ("import ctypes; ctypes.PyDLL(None).sleep(1000)", "rank 0 waits"),
    ],
)
def test_the_rank_that_does_not_go_on_is_shown_with_its_stack(tmp_path, how, others):
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(REPOSITORY), how=how))
    settings = {"num_gpus": 2, "watchdog_timeout": 10, "master_port": random.randint(20000, 30000)}
    config = write_config(tmp_path, data_path=prepare_corpus(tmp_path, 20), **settings)
    done = run_command(["deepy.py", "script.py", config], tmp_path, check=False)
    assert done.returncode == 1
    head, rest = done.stderr.split("\n", 1)
    assert head.startswith(
        "error: nothing was finished for 10 s (watchdog_timeout): rank 1 does not go on (iteration "
    )
    assert head.split("); ")[-1].startswith(others)
    assert "script.py" in rest and " in forgets_to_go_on" in rest
    assert rest.startswith("rank 1, iteration ")

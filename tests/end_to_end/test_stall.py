"""A training in which one rank does not go on ends by itself and says where (P34)."""

from tests.common.paths import ROOT
from tests.common.runs import prepare_corpus, run_command, write_config

# Rank 1 stops within its third step.
SCRIPT = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
from megatron.common import activity
from megatron.common.errors import run_main

def forgets_to_go_on():
    time.sleep(1000)

def main():
    steps = []
    def start():
        # However long a busy machine takes for the imports and the first steps.
        while len(steps) < 3:
            activity.pulse()
            time.sleep(0.1)
    threading.Thread(target=start, daemon=True).start()
    import train
    from megatron import training
    def listen(loss):
        steps.append(loss)
        if len(steps) == 3 and os.environ["RANK"] == "1":
            forgets_to_go_on()
    training.collect_loss_for_unit_test = listen
    return train.main()

run_main(main)
"""


def test_the_rank_that_does_not_go_on_is_shown_with_its_stack(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))
    settings = {"num_gpus": 2, "watchdog_timeout": 10}
    config = write_config(tmp_path, data_path=prepare_corpus(tmp_path, 20), **settings)
    done = run_command(["deepy.py", "script.py", config], tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: nothing was finished for 10 s (watchdog_timeout): rank 1 does not go on (iteration 3, training step); "
        "rank 0 waits in all_reduce\nrank 1, iteration 3, training step, without progress for "
    )
    assert done.stderr.endswith("in forgets_to_go_on\n    time.sleep(1000)\n")

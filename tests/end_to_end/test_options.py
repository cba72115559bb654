"""Less common ways to start a run and less common settings, through the command lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common.paths import ROOT
from tests.common.ports import quiet_ports
from tests.common.runs import environment, prepare_corpus, run_command, write_config

ITERATION = re.compile(r"iteration +(\d+)/ +(\d+)")
LOSS = re.compile(r"lm_loss: (\S+)")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(a folder to run commands in, the prefix of a data set in it)"""
    directory = tmp_path_factory.mktemp("runs")
    return directory, prepare_corpus(directory, documents=20)


def config(place, name: str, **settings) -> str:
    directory, data = place
    defaults = {
        "data_path": data, "train_iters": 4, "lr_decay_iters": 4, "eval_iters": 1, "eval_interval": 2,
        "log_interval": 1, "num_gpus": 1,
    }  # fmt: skip
    return write_config(directory, f"{name}.yml", **defaults | settings)


def train(place, name: str, **settings) -> str:
    """`deepy.py train.py` to its end; returns what it printed."""
    return run_command(["deepy.py", "train.py", config(place, name, **settings)], place[0]).stdout


@pytest.fixture(scope="module")
def straight_run(place) -> subprocess.CompletedProcess:
    """A run on one process, with the names of all modules that it imports on stderr."""
    name = config(place, "straight", eval_iters=0, zero_optimization={"stage": 1})
    return run_command(["deepy.py", "train.py", name], place[0], env={"PYTHONPROFILEIMPORTTIME": "1"})


@pytest.fixture(scope="module")
def straight(straight_run) -> list[float]:
    """Losses of a run on one process."""
    return [float(loss) for loss in LOSS.findall(straight_run.stdout)]


def test_training_does_not_wait_for_a_compiler_that_it_does_not_use(straight_run):
    imported = {line.rpartition("|")[2].strip() for line in straight_run.stderr.splitlines()}
    assert "deepspeed.runtime.zero.muon.muon_optimizer" in imported
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & imported


@pytest.mark.parametrize(
    "layout",
    [
        {"model_parallel_size": 2},
        {"pipe_parallel_size": 2},
        {"zero_optimization": {"stage": 2}},
    ],
    ids=["tp2", "pp2", "dp2 ZeRO-2"],
)
def test_torchrun_starts_the_run_that_deepy_starts(place, straight, layout):
    directory, _ = place
    name = config(place, "torchrun", num_gpus=None, eval_iters=0, **layout)
    (port,) = map(str, quiet_ports(1))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    done = subprocess.run(
        [*launcher, str(ROOT / "train.py"), name],
        cwd=directory, env=environment() | {"TMPDIR": str(directory)},  # torchrun cleans up nothing
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [float(loss) for loss in LOSS.findall(done.stdout)] == pytest.approx(straight, rel=1e-4)


def test_evaluation_never_or_at_the_end_only(place):
    assert "results at" not in train(place, "never", eval_iters=0, pipe_parallel_size=2, num_gpus=2)
    output = train(place, "at_the_end", eval_interval=0, lazy_mpu_init=True)
    assert re.findall(r"(\w+) results at ([\w ]+?) \|", output) == [
        ("validation", "the end of training for validation data"),
        ("test", "the end of training for test data"),
    ]


def test_one_epoch_without_evaluation_reads_all_of_the_data(place):
    output = train(
        place, "epoch", train_iters=None, lr_decay_iters=None, train_epochs=1, eval_iters=0, train_batch_size=256,
    )  # fmt: skip
    samples, iterations = (int(re.search(pattern, output)[1].replace(",", "")) for pattern in (
        r"train data per epoch: ([\d,]+) samples", r"1 epoch\(s\) are (\d+) iterations",
    ))  # fmt: skip
    assert iterations == samples // 256
    assert ITERATION.findall(output)[-1] == (str(iterations), str(iterations))


def test_a_run_stops_at_exit_interval_with_its_checkpoints_and_logs(place):
    directory, _ = place
    settings = {
        "save": "saved", "load": "saved", "checkpoint_scale": "log", "checkpoint_factor": 2, "extra_save_iters": [0],
        "keep_last_n_checkpoints": 2, "exit_interval": 3, "log_dir": "logs", "tensorboard_dir": "events",
    }  # fmt: skip
    output = train(place, "stops", **settings)
    assert [path.name for path in sorted((directory / "saved").glob("global_step*"))] == [
        "global_step2",
        "global_step3",
    ]
    assert re.findall(r"saved checkpoint \S+global_step(\d)", output) == ["0", "1", "2", "3"]
    assert "exiting the program at iteration 3" in output
    output = train(place, "stops", **settings)
    assert ITERATION.findall(output) == [("4", "4")]

    (log,) = (path for path in (directory / "logs").glob("*_stdout.txt"))
    assert [int(number) for number, _ in ITERATION.findall(log.read_text())] == [1, 2, 3, 4]
    assert steps_of("train/lm_loss", directory / "events") == [1, 2, 3, 4]
    assert steps_of("validation/lm_loss", directory / "events") == [2, 4]


def steps_of(tag: str, folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = []
    for name in sorted(os.listdir(folder)):
        events = EventAccumulator(str(folder / name))
        events.Reload()
        steps += [event.step for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []
    return steps

"""Whatever moment a worker dies at, the same command goes on as if nothing had happened."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.common.checkpoints import tensors_of
from tests.common.runs import prepare_corpus, run_command, start_command, write_config

ITERATIONS, KILLS, PROCESSES = 60, 10, 2
COMMAND = ["deepy.py", "train.py"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    return directory, prepare_corpus(directory)


@pytest.fixture(scope="module")
def straight(workplace):
    """Every tensor of a run that nothing has happened to."""
    directory, data = workplace
    run_command([*COMMAND, config(directory, data, "straight")], directory)
    return final_state(directory / "straight")


def config(directory: Path, data: str, name: str, **settings) -> str:
    folder = str(directory / name)
    defaults = {
        "data_path": data, "save": folder, "load": folder, "checkpoint_factor": 4, "train_iters": ITERATIONS,
        "lr_decay_iters": ITERATIONS, "log_interval": 1, "num_gpus": PROCESSES, "hidden_dropout": 0.1,
        "keep_last_n_checkpoints": 2, "zero_optimization": {"stage": 1},
    }  # fmt: skip
    return write_config(directory, f"{name}.yml", **defaults | settings)


def final_state(folder: Path) -> dict:
    """Every tensor of the last checkpoint, by file and path."""
    return tensors_of(folder / f"global_step{ITERATIONS}")


def workers(launcher: int) -> list[psutil.Process]:
    """The training processes. What they start themselves looks like them for a moment, but is not the launcher's."""
    try:
        children = psutil.Process(launcher).children()
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if "train.py" in " ".join(_command_line(child))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill_one_worker(job, log: Path, folder: Path, choice: random.Random) -> list[psutil.Process]:
    """Wait until this start has made a random number of steps, or is saving, and kill -9 a random worker."""
    while_saving = choice.random() < 0.4
    steps = choice.randint(1, 7)
    while job.poll() is None:
        made = len(re.findall(r"iteration +\d+/", log.read_text(errors="replace")))
        if made and (any(folder.glob(".global_step*.partial")) if while_saving else made >= steps):
            break
        time.sleep(0.001)
    alive = workers(job.pid)
    if alive:
        choice.choice(alive).send_signal(signal.SIGKILL)
    return alive


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # It has gone between the two questions.
        return False


def test_ten_kills_at_random_moments_leave_no_trace_in_the_final_state(workplace, straight):
    directory, data = workplace
    folder = directory / "killed"
    beside = {"save": str(folder), "load": str(folder), "async_save": True}
    names = [config(directory, data, "killed"), config(directory, data, "killed_beside", **beside)]
    choice = random.Random(20)
    for attempt in range(KILLS):
        log = directory / f"attempt{attempt}.log"
        with log.open("w") as output:
            job = start_command([*COMMAND, names[attempt % 2]], directory, output)
            alive = kill_one_worker(job, log, folder, choice)
            status = job.wait(60)
        assert alive, "the run ended before it was killed ten times"
        assert status != 0
        assert "was killed by SIGKILL" in log.read_text()
        assert not any(map(is_running, alive)), "orphans"
    run_command([*COMMAND, names[1]], directory)
    killed = final_state(folder)
    assert straight.keys() == killed.keys()
    differing = [key for key in straight if not torch.equal(straight[key], killed[key])]
    assert not differing
    assert len(straight) > 20


def test_a_job_that_starts_itself_again_comes_to_the_same_state(workplace, straight):
    directory, data = workplace
    folder, log = directory / "restarting", directory / "restarting.log"
    settings = {"max_restarts": 5, "log_dir": str(directory / "logs")}
    with log.open("w") as output:
        job = start_command([*COMMAND, config(directory, data, "restarting", **settings)], directory, output)
        for killed in (4, 8):
            while job.poll() is None and not is_saved(folder, killed):
                time.sleep(0.002)
            for worker in workers(job.pid)[:1]:
                worker.send_signal(signal.SIGKILL)
            count = f"restart {killed // 4} of 5 (max_restarts), from the checkpoint of iteration"
            while job.poll() is None and count not in log.read_text():
                time.sleep(0.01)
        assert job.wait(120) == 0, log.read_text()
    assert log.read_text().count("error: rank ") == log.read_text().count(" was killed by SIGKILL") == 2
    records = [json.loads(line) for line in (directory / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [record["runtime/restarts"] for record in records if "runtime/restarts" in record] == [0, 1, 2]
    restarted = final_state(folder)
    assert straight.keys() == restarted.keys()
    assert all(torch.equal(straight[key], restarted[key]) for key in straight)


def is_saved(folder: Path, iteration: int) -> bool:
    """Whether a checkpoint of this iteration or a later one is there."""
    latest = folder / "latest"
    return latest.exists() and int(latest.read_text().removeprefix("global_step")) >= iteration


def test_terminated_run_saves_exits_cleanly_and_resumes_bit_exact(workplace):
    directory, data = workplace
    settings = {"num_gpus": 1, "checkpoint_factor": 1000, "zero_optimization": {"stage": 0}}
    run_command([*COMMAND, config(directory, data, "whole", **settings)], directory)
    name = config(directory, data, "terminated", **settings)
    log = directory / "terminated.log"
    with log.open("w") as output:
        job = start_command([*COMMAND, name], directory, output)
        while job.poll() is None and not re.search(r"iteration +5/", log.read_text(errors="replace")):
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGTERM)
        assert job.wait(60) == 0, log.read_text()
    (saved,) = (directory / "terminated").glob("global_step*")
    assert saved.name != f"global_step{ITERATIONS}"
    assert "exiting the program at iteration" in log.read_text()
    run_command([*COMMAND, name], directory)
    whole, terminated = final_state(directory / "whole"), final_state(directory / "terminated")
    assert whole.keys() == terminated.keys()
    assert all(torch.equal(whole[key], terminated[key]) for key in whole)

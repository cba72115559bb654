"""Batches: positions after a resume, every layout, worker processes that never outlive their trainer."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from megatron import mpu
from megatron.common.errors import DataError
from megatron.data.loaders import LoaderIterator, make_data_loader, shift_and_wrap_data_loaders
from megatron.mpu.state import Axis, ParallelState
from tests.unit.data.samples import config, make_gpt2, numbered, random_sizes, write_dataset


@pytest.fixture
def dataset(tmp_path):
    return make_gpt2(write_dataset(tmp_path / "data", numbered(random_sizes(60), step=100)), 60)


def read(iterator, count):
    return torch.cat([batch["text"] for batch in itertools.islice(iterator, count)]).tolist()


def test_batches_are_stacked_samples(dataset):
    batch = next(iter(make_data_loader(dataset, config())))
    assert list(batch) == ["text"]
    assert batch["text"].dtype == torch.int64 and batch["text"].shape == (2, 9)
    assert batch["text"].tolist() == [dataset[0]["text"].tolist(), dataset[1]["text"].tolist()]
    assert make_data_loader(None, config()) is None


def test_too_few_samples_for_a_batch_are_an_error(dataset):
    with pytest.raises(DataError, match=r"valid: \d+ samples are fewer than one batch of 1000"):
        make_data_loader(dataset, config(batch_size=1000), "valid")


def test_iterators_start_where_the_run_stopped(dataset):
    settings = config(iteration=12)
    loaders = {name: make_data_loader(dataset, settings) for name in ("train", "valid", "test")}
    train, valid, test = shift_and_wrap_data_loaders(settings, loaders)
    whole = read(LoaderIterator(make_data_loader(dataset, settings), 0, True), 60)
    assert read(train, 3) == whole[2 * 12 * 2 :][:6]
    evaluations = 12 // settings.eval_interval
    assert read(valid, 3) == whole[2 * evaluations * settings.eval_iters * 2 :][:6]
    assert read(test, 3) == whole[:6]


def test_the_iteration_given_wins_and_absent_loaders_stay_absent(dataset):
    settings = config(iteration=12)
    loaders = {"train": make_data_loader(dataset, settings), "valid": None}
    train, valid, test = shift_and_wrap_data_loaders(settings, loaders, iteration=0)
    assert valid is None and test is None
    assert read(train, 1) == [dataset[0]["text"].tolist(), dataset[1]["text"].tolist()]


def test_a_run_resumed_in_any_pass_reads_what_the_uninterrupted_one_reads(dataset):
    settings = config()
    whole = read(LoaderIterator(make_data_loader(dataset, settings), 0, True), 3 * len(dataset) // 2)
    for iteration in (1, 7, len(dataset) // 4, len(dataset) // 4 + 1, len(dataset) // 2):
        loaders = {"train": make_data_loader(dataset, settings)}
        resumed, _, _ = shift_and_wrap_data_loaders(settings, loaders, iteration=iteration)
        assert read(resumed, 6) == whole[iteration * 4 :][:12]


def test_without_looping_the_pass_ends(dataset):
    settings = config()
    loaders = {"train": make_data_loader(dataset, settings)}
    iterator, _, _ = shift_and_wrap_data_loaders(settings, loaders, loop=False, iteration=0)
    assert len(list(iterator)) == len(loaders["train"]) == len(dataset) // 2


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 4), (2, 2), (4, 1), (2, 1)])
def test_every_layout_reads_the_same_samples(dataset, ranks, batch_size):
    expected = read(LoaderIterator(make_data_loader(dataset, config(batch_size=4)), 0, True), 6)
    parts = []
    for rank in range(ranks):
        with mpu.use(ParallelState(data=Axis(ranks=tuple(range(ranks)), rank=rank))):
            loader = make_data_loader(dataset, config(batch_size=batch_size))
            parts.append(list(itertools.islice(LoaderIterator(loader, 0, True), 24 // (ranks * batch_size))))
    found = [row for step in zip(*parts, strict=True) for batch in step for row in batch["text"].tolist()]
    assert found == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_does_not_touch_the_global_random_state(dataset, num_workers):
    before = torch.get_rng_state()
    read(LoaderIterator(make_data_loader(dataset, config(num_workers=num_workers)), 0, True), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_read_the_same_batches(dataset):
    alone = read(LoaderIterator(make_data_loader(dataset, config()), 3, True), 40)
    assert read(LoaderIterator(make_data_loader(dataset, config(num_workers=2)), 3, True), 40) == alone


def test_what_workers_are_given_can_be_pickled(dataset):
    loader = make_data_loader(dataset, config(num_workers=1))
    copies = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
    batch = copies[1]([copies[0][0]])
    assert np.array_equal(batch["text"][0], dataset[0]["text"])


TRAINER = """
import sys, time
from megatron.data.loaders import LoaderIterator, make_data_loader
from tests.unit.data.samples import config, make_gpt2
iterator = LoaderIterator(make_data_loader(make_gpt2(sys.argv[1], 60), config(num_workers=2)), 0, True)
next(iterator)
print(*(worker.pid for worker in iterator._loader._iterator._workers), flush=True)
for line in sys.stdin:
    for _ in range(20):
        next(iterator)
    print("read", flush=True)
"""


@pytest.fixture
def trainer(dataset, tmp_path):
    command = [sys.executable, "-c", TRAINER, dataset.data_prefix]
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids, seconds=30):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc on this system")


@needs_proc
def test_workers_of_a_killed_trainer_end_and_leave_nothing_behind(trainer, tmp_path):
    process, workers = trainer
    assert len(workers) == 2 and all(map(alive, workers))
    process.kill()
    process.wait()
    assert wait_until_gone(workers)
    assert not list((tmp_path / "tmp").glob("pymp-*"))


@needs_proc
@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this system does not tell who sent a signal")
def test_signals_to_the_whole_job_leave_the_workers_to_their_trainer(trainer):
    process, workers = trainer
    for pid in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "read\n"
    process.stdin.close()
    assert process.wait(30) == 0
    assert wait_until_gone(workers)

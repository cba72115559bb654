"""Saving beside the training: the files are those of a blocking save, and no failure harms what is there."""

import errno
import itertools
import threading
from pathlib import Path

import pytest
import torch

from tests.common.distributed import DistributedTestError, run_distributed
from tests.distributed.layouts import batches
from tests.distributed.test_resume import start


class SlowDisk:
    """Takes the place of write_tensors: writes only when it may, or fails."""

    def __init__(self, monkeypatch):
        from megatron.checkpointing import safe_engine, writing

        self.may_write, self.failure, self._write = threading.Event(), None, writing.write_tensors
        monkeypatch.setattr(safe_engine, "write_tensors", self)
        monkeypatch.setattr(writing, "PAUSE_SECONDS", 0.0)

    def __call__(self, state, path):
        assert self.may_write.wait(60)
        if self.failure is not None:
            raise self.failure
        return self._write(state, path)


class Run:
    """A run on this rank that can take steps and save."""

    def __init__(self, settings: dict, world_size: int):
        self.args, self.engine, _ = start(settings, world_size)
        self._data = itertools.islice(batches(self.args), 0, None)
        self.engine.train()

    def step(self) -> None:
        from megatron.common.timers import Timers
        from megatron.training import train_step

        train_step(self.args, Timers(), self._data, self.engine, None, None)

    def save(self, iteration: int, **settings) -> bool:
        from megatron.checkpointing import save_checkpoint

        for name, value in settings.items():
            setattr(self.args, name, value)
        return save_checkpoint(self.args, iteration, self.engine)

    def follow(self, wait: bool = False):
        from megatron.checkpointing.save import follow_save

        outcome = follow_save(self.engine, wait)
        return None if outcome is None else (outcome.iteration, outcome.saved)


def save_both_ways(settings: dict, world_size: int, folder: str) -> list:
    with pytest.MonkeyPatch.context() as monkeypatch:
        run, disk = Run(settings, world_size), SlowDisk(monkeypatch)
        run.step()
        disk.may_write.set()
        assert run.save(1, save=f"{folder}/blocking", async_save=False)
        disk.may_write.clear()
        assert run.save(1, save=f"{folder}/beside", async_save=True)
        seen = []
        for _ in range(3):
            run.step()
            seen.append(run.follow())
        written = sorted(path.name for path in Path(folder, "beside").iterdir())
        torch.distributed.barrier()
        disk.may_write.set()
        seen.append(run.follow(wait=True))
        return [seen, [name for name in written if not name.endswith(".py")]]


def tensors(value, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested containers, by path."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: found for name, item in items for key, found in tensors(item, f"{prefix}/{name}").items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_optimization": {"stage": 1}, "precision": "bfloat16"},
        {"zero_optimization": {"stage": 3}},
        {"pipe_parallel_size": 2},
    ],
    ids=["dp2+zero1 bf16", "dp2+zero3", "pp2"],
)
def test_steps_taken_meanwhile_do_not_show_in_the_files(settings, tmp_path):
    from megatron.checkpointing import manifest
    from megatron.checkpointing.safe_engine import load_file

    for seen, written in run_distributed(save_both_ways, 2, settings, 2, str(tmp_path)):
        assert seen == [None, None, None, (1, True)]
        assert written == [".global_step1.partial"]
    blocking, beside = (tmp_path / name / "global_step1" for name in ("blocking", "beside"))
    assert (tmp_path / "beside" / "latest").read_text() == "global_step1"
    assert manifest.content_files(blocking) == manifest.content_files(beside)
    assert manifest.problem(blocking) is None and manifest.problem(beside) is None
    for path in blocking.glob("*.pt"):
        expected, found = tensors(load_file(path)), tensors(load_file(beside / path.name))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), path.name
    saved = sum(path.stat().st_size for path in beside.glob("*.pt"))
    assert saved <= 1.1 * sum(path.stat().st_size for path in blocking.glob("*.pt"))


def fail_and_go_on(settings: dict, world_size: int) -> list:
    from megatron.checkpointing.names import read_latest, saved_iterations

    with pytest.MonkeyPatch.context() as monkeypatch:
        run, disk = Run(settings, world_size), SlowDisk(monkeypatch)
        disk.may_write.set()
        found = []
        run.save(1)
        # The next save waits for the one before.
        run.save(2)
        found.append(saved_iterations(run.args.save))
        found.append(run.follow(wait=True))
        if torch.distributed.get_rank() == 1:
            disk.failure = OSError(errno.ENOSPC, "No space left on device")
        run.save(3)
        outcome = None
        while outcome is None:
            run.step()
            outcome = run.follow()
        found += [outcome, saved_iterations(run.args.save), read_latest(run.args.save)]
        disk.failure = None
        run.save(4)
        found += [run.follow(wait=True), run.follow(wait=True)]
        return found


def test_a_full_disk_and_overlapping_saves_harm_nothing(tmp_path):
    settings = {
        "save": str(tmp_path),
        "checkpoint_factor": 1,
        "async_save": True,
        "keep_last_n_checkpoints": 2,
    }
    for found in run_distributed(fail_and_go_on, 2, settings, 2):
        assert found == [
            [1],
            (2, True),
            (3, False),
            [1, 2],
            "global_step2",
            (4, True),
            None,
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step2", "global_step4", "latest"]
    assert (tmp_path / "latest").read_text() == "global_step4"


def train_and_save(settings: dict, world_size: int) -> dict:
    run = Run(settings, world_size)
    run.step()
    assert run.save(1)
    return weights(run.engine)


def weights(engine) -> dict:
    from megatron.checkpointing.weights import whole

    named = dict(engine.module.named_parameters())
    with whole(named.values()):
        return {name: value.detach().clone() for name, value in named.items()}


def load_weights(settings: dict, world_size: int) -> tuple[dict, int]:
    _, engine, iteration = start(settings, world_size)
    return weights(engine), iteration


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_checkpoint_without_optimizer_holds_the_weights_and_says_so(stage, tmp_path):
    settings = {
        "save": str(tmp_path), "load": str(tmp_path), "checkpoint_factor": 1, "no_save_optim": True,
        "zero_optimization": {"stage": stage},
    }  # fmt: skip
    (saved,) = run_distributed(train_and_save, 1, settings, 1)
    moments = [
        path
        for path in tensors_of_files(tmp_path / "global_step1")
        if "exp_avg" in path or "base_optimizer" in path
    ]
    assert moments == []
    with pytest.raises(DistributedTestError) as caught:
        run_distributed(load_weights, 1, settings, 1)
    assert "set no_load_optim or finetune" in next(iter(caught.value.exceptions.values()))
    ((loaded, iteration),) = run_distributed(load_weights, 1, {**settings, "no_load_optim": True}, 1)
    assert iteration == 1
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())


def tensors_of_files(directory: Path) -> list[str]:
    from megatron.checkpointing.safe_engine import load_file

    return [name for path in directory.glob("*.pt") for name in tensors(load_file(path))]

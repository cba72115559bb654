"""Profiled iterations, and no others, are in the traces, however training ends."""

import contextlib
import io
import json
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch

from tests.common.distributed import run_distributed
from tests.distributed.layouts import BASE, VOCABULARY, batches

SMALL = {**BASE, "num_layers": 2, "train_iters": 6, "log_interval": 2, "profile_step_start": 2}


def prepared(settings: dict, world_size: int = 1):
    """(neox_args, what `train` needs besides) of a small model on this rank."""
    from megatron.initialize import initialize_megatron
    from megatron.neox_arguments import NeoXArgs
    from megatron.training import setup_model_and_optimizer

    neox_args = NeoXArgs.from_dict({**SMALL, "global_num_gpus": world_size, **settings})
    neox_args.configure_distributed_args()
    neox_args.build_tokenizer()
    neox_args.padded_vocab_size = VOCABULARY
    initialize_megatron(neox_args)
    engine, optimizer, scheduler, _ = setup_model_and_optimizer(neox_args)
    return neox_args, engine, optimizer, scheduler


def train(run, data=None, start: int = 0) -> int:
    from megatron.common.timers import Timers
    from megatron.engine.train_state import TrainState
    from megatron.training import train

    neox_args, engine, optimizer, scheduler = run
    data = data or batches(neox_args)
    state = TrainState(iteration=start)
    return train(neox_args, Timers(), engine, None, optimizer, scheduler, data, None, state)


def profiled(folder: Path, settings: dict, world_size: int = 1) -> None:
    train(prepared({**settings, "profile": True, "tensorboard_dir": str(folder)}, world_size))


def in_every_way(folder: str) -> dict[str, int]:
    """Train one engine on and on, each time into a folder of its own; returns the iterations reached."""
    run = prepared({"profile": True, "profile_step_stop": 4, "tensorboard_dir": folder})
    neox_args, engine, *_ = run
    own = dict(vars(engine))

    def ending(how):
        iterator = batches(neox_args)
        for _ in range(2 * neox_args.gradient_accumulation_steps):
            yield next(iterator)
        how()
        yield from iterator

    def fail():
        raise ValueError("bad sample")

    reached = {}

    def into(name: str, data=None, start: int = 0) -> None:
        neox_args.tensorboard_dir = str(Path(folder, name))
        reached[name] = train(run, data, start)

    into("whole")
    into("signal", ending(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(ValueError, match="bad sample"):
        into("error", ending(fail))
    into("resumed", start=3)
    into("after", start=4)
    neox_args.exit_interval = 3
    into("exit")
    for method in ("forward", "backward", "step"):
        assert vars(engine).get(method) is own.get(method), "the engine has its own functions again"
    return reached


def events(path: Path) -> list[dict]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]


def ranges(path: Path, category: str = "user_annotation") -> list[str]:
    """Names of ranges in the order of their beginnings."""
    found = [event for event in events(path) if event.get("cat") == category]
    return [event["name"] for event in sorted(found, key=lambda event: event["ts"])]


def steps(path: Path) -> list[int]:
    return [int(found[1]) for name in ranges(path) if (found := re.fullmatch(r"ProfilerStep#(\d+)", name))]


def test_traces_hold_the_iterations_of_the_window_however_training_ends(tmp_path):
    reached = run_distributed(in_every_way, 1, str(tmp_path))[0]
    assert reached == {"whole": 6, "signal": 4, "resumed": 6, "after": 6, "exit": 3}
    whole = tmp_path / "whole" / "rank0.2.pt.trace.json"
    assert steps(whole) == [2, 3, 4]
    parts = [name for name in ranges(whole) if name in ("forward", "backward", "optimizer")]
    assert parts == ["forward", "backward", "optimizer"] * 3
    assert "aten::mm" in ranges(whole, "cpu_op") or "aten::addmm" in ranges(whole, "cpu_op")
    assert steps(tmp_path / "exit" / "rank0.2.pt.trace.json") == [2, 3]
    assert steps(tmp_path / "signal" / "rank0.2.pt.trace.json") == [2, 3, 4]
    # The one that the error ended is there too.
    assert steps(tmp_path / "error" / "rank0.2.pt.trace.json") == [2, 3]
    assert steps(tmp_path / "resumed" / "rank0.4.pt.trace.json") == [4]
    assert list((tmp_path / "after").glob("rank*")) == []


def test_a_pipeline_has_a_trace_of_every_stage_with_its_instructions(tmp_path):
    settings = {"pipe_parallel_size": 2, "train_iters": 3, "gradient_accumulation_steps": 2}
    run_distributed(profiled, 2, tmp_path, {**settings, "profile_step_stop": 2}, 2)
    assert sorted(path.name for path in tmp_path.glob("rank*")) == [
        "rank0.2.pt.trace.json",
        "rank1.2.pt.trace.json",
    ]
    for rank, moves in enumerate((("SendActivation", "RecvGrad"), ("RecvActivation", "SendGrad"))):
        path = tmp_path / f"rank{rank}.2.pt.trace.json"
        names = ranges(path)
        assert steps(path) == [2]
        for name, count in {"forward": 2, "backward": 2, "optimizer": 1, moves[0]: 2, moves[1]: 2}.items():
            assert names.count(name) == count, name


def nothing_but_words(folder: str) -> list[str]:
    """What is warned of without a trace: on a CPU, and where the window is never reached."""

    run = prepared({"train_iters": 1, "memory_profiling": True, "memory_profiling_path": folder})
    said = []
    for change in ({}, {"memory_profiling": False, "profile": True, "log_dir": folder}):
        vars(run[0]).update(change)
        with contextlib.redirect_stderr(io.StringIO()) as stream:
            train(run)
        said.append(stream.getvalue())
    return said


def test_what_records_nothing_says_so_in_a_line(tmp_path):
    memory, trace = run_distributed(nothing_but_words, 1, str(tmp_path))[0]
    assert (
        memory == "warning: memory_profiling does nothing on a CPU: it records what CUDA's allocator does\n"
    )
    assert trace == "warning: nothing was profiled: no iteration from 2 to 12 was trained\n"
    assert list(tmp_path.glob("rank*")) == []


class Engine:
    """As much of an engine as is given ranges."""

    def forward(self): ...

    backward = step = forward


class Broken:
    def __init__(self):
        self.calls = []

    def start(self, number):
        self.calls.append(number)

    def stop(self):
        raise OSError("disk full")


def test_a_record_that_fails_leaves_training_alone(capsys):
    from megatron.logging.profiler import Profiler

    recorder, trained = Broken(), []
    with Profiler(Engine(), 2, 3, [recorder]) as profiler:
        for number in (1, 2, 3, 4):
            with profiler.iteration(number):
                trained.append(number)
    assert (recorder.calls, trained) == ([2], [1, 2, 3, 4])
    assert capsys.readouterr().err == "warning: Broken failed and is switched off: disk full\n"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    from megatron.common.errors import LaunchError
    from megatron.logging.profiler import Profiler
    from tests.common.models import model_args

    (tmp_path / "file").write_text("")
    args = model_args(profile=True, log_dir=str(tmp_path / "file" / "logs"))
    with pytest.raises(LaunchError, match="log_dir=.*cannot be written: .*choose another folder"):
        Profiler.from_config(args, None)


def trace_on_a_full_disk(folder: str) -> str:
    """What is warned of where a file can have 4 kB only."""

    from megatron.logging.profiler import Profiler, Trace

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        with Profiler(Engine(), 1, 1, [Trace(Path(folder))]) as profiler, profiler.iteration(1):
            for _ in range(200):
                torch.ones(3).add(1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return stream.getvalue()


def test_a_trace_that_cannot_be_written_whole_is_not_left_there(tmp_path):
    said = run_distributed(trace_on_a_full_disk, 1, str(tmp_path))[0]
    path = tmp_path / "rank0.1.pt.trace.json"
    assert said == f"warning: Trace failed and is switched off: {path} cannot be written\n"
    assert list(tmp_path.iterdir()) == []

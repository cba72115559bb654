"""Saving, loading and reshaping a checkpoint against plain torch.save and torch.load of the same bytes, in one run.

    python tools/benchmarks/checkpoint.py [--layers 8] [--hidden 512] [--folder DISK] [--rounds 5]

A model and its Adam states in fp32, on one process. The peers write the same objects, file by file, and fsync each of
them as a checkpoint does; and read the files they have written, which lie in the page cache as the checkpoint's do.
What the peers do not do and is in the other numbers: checksums while writing and before loading, the copy into model
and optimizer, renames. Reshaping, to two tensor ranks with ZeRO-1, stands beside reading and writing the same bytes.
All take turns, every second time the peer first; ratios are those of the best times and of the medians, since a disk
and cores shared with others have no speed of their own.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from megatron.checkpointing import load_checkpoint, save_checkpoint
from megatron.checkpointing.names import get_checkpoint_tag
from megatron.checkpointing.reshape import Task, reshape
from megatron.checkpointing.safe_engine import load_file
from megatron.checkpointing.save import follow_save
from megatron.checkpointing.target_tree import Layout
from megatron.common import device as door
from megatron.common.errors import CheckpointError, run_main
from tools.benchmarks.table import print_table
from tools.benchmarks.training_step import configuration

SEQUENCE, VOCABULARY, TAG = 64, 32_000, get_checkpoint_tag(1)
TARGET = Layout(data=1, tensor=2, pipe=0, zero=1, precision="fp32")


def build(layers: int, hidden: int, folder: Path):
    """(neox_args, engine) after one step, so that there are optimizer states."""
    from megatron.common.timers import Timers
    from megatron.initialize import initialize_megatron
    from megatron.training import setup_model_and_optimizer, train_step

    neox_args = configuration((layers, hidden, 8, SEQUENCE, VOCABULARY, SEQUENCE), 1, "fp32")
    initialize_megatron(neox_args)
    engine, *_ = setup_model_and_optimizer(neox_args)
    neox_args.save = neox_args.load = str(folder)
    engine.train()
    text = torch.randint(0, VOCABULARY, (1, SEQUENCE + 1))
    train_step(neox_args, Timers(), iter([{"text": text}]), engine, None, None)
    return neox_args, engine


def seconds_of(action: Callable[[], object]) -> float:
    door.synchronize()
    start = time.perf_counter()
    action()
    door.synchronize()
    return time.perf_counter() - start


def plain_save(states: dict[str, object], folder: Path) -> None:
    folder.mkdir()
    for name, state in states.items():
        torch.save(state, folder / name)
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())


def plain_load(folder: Path) -> None:
    for path in sorted(folder.glob("*.pt")):
        load_file(path)


def one_round(
    neox_args, engine, folder: Path, states: dict[str, object], plain_first: bool
) -> dict[str, float]:
    """Seconds of everything, each from a place where nothing is left to write."""

    def saved(beside: bool) -> None:
        neox_args.async_save = beside
        if not save_checkpoint(neox_args, 1, engine):
            raise CheckpointError(f"--folder: nothing can be saved in {folder}")

    def timed(name: str, action: Callable[[], object], target: str = "") -> None:
        if target:
            shutil.rmtree(folder / target, ignore_errors=True)
            # Pages that nobody has used for a while may first have to come from a virtual machine's host.
            plain_save(states, folder / "warm")
            shutil.rmtree(folder / "warm")
        os.sync()
        times[name] = seconds_of(action)

    def in_turns(*pair: tuple) -> None:
        for measurement in reversed(pair) if plain_first else pair:
            timed(*measurement)

    times: dict[str, float] = {}
    in_turns(
        ("save", lambda: saved(False), TAG),
        ("plain save", lambda: plain_save(states, folder / "plain"), "plain"),
    )
    timed("stall", lambda: saved(True), TAG)
    times["beside"] = times["stall"] + seconds_of(lambda: follow_save(engine, wait=True))
    in_turns(
        ("load", lambda: load_checkpoint(neox_args, engine)),
        ("plain load", lambda: plain_load(folder / "plain")),
    )
    times["plain load and save"] = times["plain load"] + times["plain save"]
    timed("reshape", lambda: reshape(Task(folder / TAG, TARGET), folder / "reshaped"), "reshaped")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to measure (default: a temporary one)"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-benchmark-", dir=options.folder))
    try:
        neox_args, engine = build(options.layers, options.hidden, folder)
        save_checkpoint(neox_args, 1, engine)
        states = {path.name: load_file(path) for path in sorted((folder / TAG).glob("*.pt"))}
        # The first round is not counted: it makes the room that later snapshots use again.
        rounds = [
            one_round(neox_args, engine, folder, states, number % 2 == 0)
            for number in range(1 + options.rounds)
        ][1:]
        size = sum(path.stat().st_size for path in (folder / TAG).glob("*.pt")) / 1e6
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def row(label: str, name: str, peer: str, times_faster: bool = True) -> list[str]:
        own, other = (min(times[key] for times in rounds) for key in (name, peer))
        middle = [statistics.median(times[key] for times in rounds) for key in (name, peer)]
        ratios = [(b / a if times_faster else a / b) for a, b in ((own, other), middle)]
        speeds = [f"{size / own:.0f}", peer, f"{size / other:.0f}"]
        return [label, f"{own:.2f} s", *speeds, *(f"{ratio:.2f}" for ratio in ratios)]

    print_table(
        f"{size:.0f} MB, {len(rounds)} rounds",
        ["what", "time", "MB/s", "peer", "MB/s", "ratio of the best", "of the medians"],
        [
            row("save", "save", "plain save"),
            row("async save: training waits", "stall", "save", times_faster=False),
            row("async save: all in all", "beside", "plain save"),
            row("load", "load", "plain load"),
            row("reshape", "reshape", "plain load and save"),
        ],
    )


if __name__ == "__main__":
    run_main(main)

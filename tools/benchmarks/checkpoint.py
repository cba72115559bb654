"""Saving, loading and reshaping a checkpoint against plain torch.save and torch.load of the same bytes, in one run.

    python tools/benchmarks/checkpoint.py [--layers 8] [--hidden 512] [--folder DISK] [--rounds 5]

A model and its Adam states in fp32, on one process. The peers write the same objects, file by file, and fsync each of
them as a checkpoint does; and read the files they have written, which lie in the page cache as the checkpoint's do.
What the peers do not do and is in the other numbers: checksums while writing and before loading, the copy into model
and optimizer, renames. Reshaping, to two tensor ranks with ZeRO-1, stands beside reading and writing the same bytes.
All take turns; ratios are medians of the rounds, since a disk shared with others has no speed of its own.
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


def one_round(neox_args, engine, folder: Path) -> dict[str, float]:
    """Seconds of everything, each from a place where nothing is left to write."""

    def saved() -> None:
        if not save_checkpoint(neox_args, 1, engine):
            raise CheckpointError(f"--folder: nothing can be saved in {folder}")

    times = {}
    for name, beside in (("save", False), ("stall", True)):
        shutil.rmtree(folder / TAG, ignore_errors=True)
        os.sync()
        neox_args.async_save = beside
        times[name] = seconds_of(saved)
        start = time.perf_counter()
        follow_save(engine, wait=True)
        times["beside"] = times[name] + time.perf_counter() - start
    states = {path.name: load_file(path) for path in sorted((folder / TAG).glob("*.pt"))}
    shutil.rmtree(folder / "plain", ignore_errors=True)
    os.sync()
    times["plain save"] = seconds_of(lambda: plain_save(states, folder / "plain"))
    states.clear()
    times["plain load"] = seconds_of(lambda: plain_load(folder / "plain"))
    times["load"] = seconds_of(lambda: load_checkpoint(neox_args, engine))
    times["plain load and save"] = times["plain load"] + times["plain save"]
    shutil.rmtree(folder / "reshaped", ignore_errors=True)
    os.sync()
    times["reshape"] = seconds_of(lambda: reshape(Task(folder / TAG, TARGET), folder / "reshaped"))
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
        # The first round is not counted: it makes the room that later snapshots use again.
        rounds = [one_round(neox_args, engine, folder) for _ in range(1 + options.rounds)][1:]
        size = sum(path.stat().st_size for path in (folder / TAG).glob("*.pt")) / 1e6
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def row(label: str, name: str, peer: str, ratio: Callable[[dict], float]) -> list[str]:
        own, other = (statistics.median(times[key] for times in rounds) for key in (name, peer))
        middle = statistics.median(ratio(times) for times in rounds)
        return [label, f"{own:.2f} s", f"{size / own:.0f}", peer, f"{size / other:.0f}", f"{middle:.2f}"]

    print_table(
        f"{size:.0f} MB, {len(rounds)} rounds",
        ["what", "time", "MB/s", "peer", "MB/s", "ratio"],
        [
            row("save", "save", "plain save", lambda times: times["plain save"] / times["save"]),
            row("async save: training waits", "stall", "save", lambda times: times["stall"] / times["save"]),
            row(
                "async save: all in all",
                "beside",
                "plain save",
                lambda times: times["plain save"] / times["beside"],
            ),
            row("load", "load", "plain load", lambda times: times["plain load"] / times["load"]),
            row(
                "reshape",
                "reshape",
                "plain load and save",
                lambda times: times["plain load and save"] / times["reshape"],
            ),
        ],
    )


if __name__ == "__main__":
    run_main(main)

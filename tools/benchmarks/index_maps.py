"""Building index maps: the compiled helpers against their Python and numpy twins, in one run.

    python tools/benchmarks/index_maps.py [--documents 1000000] [--tokens 1000000000] [--samples 100000000]

Packed maps are timed whole (document order, sample positions, sample order), for one epoch of documents of
exponentially distributed lengths. The blend has three members; its twin needs minutes for 1e8 samples, so it is timed
on a hundredth of them and scaled up (it does the same work for every sample). Sides take turns, each in a process and
on one thread of its own; seconds are of processor time, so that other load does not count, and neither does compiling.
The table shows the best of the rounds and the highest memory use of the process.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from tools.benchmarks.table import print_table  # noqa: E402

SEQ_LENGTH = 2048
SEED = 1234
BLEND = (0.7, 0.2, 0.1)
TWIN_PART = 100
REPEATS = 3
TASKS = ("packed", "blend")
SIDES = ("compiled", "twin")


def choose(side: str) -> None:
    """Make this process use the compiled helpers, or never."""
    from megatron.data import helpers_build

    if side == "compiled":
        assert helpers_build.load(compile_if_absent=True) is not None, "the helpers cannot be compiled here"
    else:
        helpers_build._Loaded.failed = True


def packed(side: str, documents: int, tokens: int) -> tuple[float, int]:
    """Seconds for one packed map, and its samples."""
    import numpy as np

    from megatron.data.packing import PackingRequest
    from megatron.registry import lookup

    sizes = np.random.RandomState(SEED).exponential(tokens / documents, documents).astype(np.int32) + 1
    build = lookup("packing", "packed")
    request = PackingRequest("benchmark", sizes, range(documents), SEQ_LENGTH, None, 1, SEED)
    choose(side)
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        maps = build(request)
        seconds.append(time.process_time() - start)
    return min(seconds), len(maps.shuffle_idx)


def blend(side: str, samples: int) -> tuple[float, int]:
    """Seconds for the map of a blend (scaled up for the twin), and its samples."""
    import numpy as np

    from megatron.data import helpers

    part = samples if side == "compiled" else max(1, samples // TWIN_PART)
    member, sample = np.zeros(part, dtype=np.uint8), np.zeros(part, dtype=np.int64)
    choose(side)
    start = time.process_time()
    helpers.build_blending_indices(member, sample, np.array(BLEND), len(BLEND), part, False)
    return (time.process_time() - start) * samples / part, samples


def measure(args, task: str, side: str) -> dict:
    """Run one task of one side in a process of its own: {"seconds", "samples", "bytes"}."""
    command = [sys.executable, __file__, "--worker", task, side]
    for name in ("documents", "tokens", "samples"):
        command += [f"--{name}", str(getattr(args, name))]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )


def work(args) -> None:
    task, side = args.worker
    seconds, samples = (
        packed(side, args.documents, args.tokens) if task == "packed" else blend(side, args.samples)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "samples": samples, "bytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Index maps: compiled helpers against their twins.")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=1_000_000_000)
    parser.add_argument("--samples", type=int, default=100_000_000, help="of the blend")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    rows = []
    for task in TASKS:
        rounds = [{side: measure(args, task, side) for side in SIDES} for _ in range(args.rounds)]
        best = {side: min(results[side]["seconds"] for results in rounds) for side in SIDES}
        peak = {side: max(results[side]["bytes"] for results in rounds) for side in SIDES}
        what = f"{args.documents:,} documents" if task == "packed" else f"{len(BLEND)} members"
        for side in SIDES:
            rows.append(
                [
                    f"{task}, {what}, {rounds[0][side]['samples']:,} samples: {side}",
                    f"{best[side]:.4f}",
                    f"{best['twin'] / best[side]:.1f}",
                    f"{peak[side] / 1e9:.2f}",
                ]
            )
    print_table("Index maps", ["map", "seconds", "x twin", "peak GB"], rows)


if __name__ == "__main__":
    run_main(main)

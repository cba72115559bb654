"""Show what is in checkpoint files, or in what two checkpoints differ.

    python tools/ckpts/inspect_checkpoints.py checkpoints/global_step100 --attributes module lr_scheduler/num_iters
    python tools/ckpts/inspect_checkpoints.py checkpoints/global_step100,checkpoints/global_step200 --compare --diff

Nothing in the files is executed.
"""

import argparse
import code
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.checkpointing.inspection import (  # noqa: E402
    check_attributes,
    checkpoint_files,
    comparison,
    contents,
    described,
)
from megatron.common.errors import CheckpointError, run_main  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show what is in checkpoint files.")
    parser.add_argument(
        "dir", help="a folder of .pt or .ckpt files, or one file; two, with a comma, to compare"
    )
    parser.add_argument(
        "--attributes",
        nargs="*",
        default=None,
        help='only these, with all below; "/" descends: module/0.weight',
    )
    parser.add_argument(
        "-s", "--statistics", action="store_true", help="mean, std, min and max of every tensor"
    )
    parser.add_argument("-c", "--compare", action="store_true", help="compare two folders or files")
    parser.add_argument(
        "-d", "--diff", action="store_true", help="with --compare: what is equal is not shown"
    )
    parser.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="end in a Python prompt, with the contents in `checkpoint`",
    )
    return parser.parse_args()


def compared(places: list[str], attributes: list[str] | None, differences_only: bool) -> Iterator[str]:
    first, second = map(checkpoint_files, places)
    if len(first) == len(second) == 1:
        second = dict(zip(first, second.values(), strict=True))
    found: list[dict[str, object]] = []
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            yield f"{name}: only in {places[name not in first]}"
            continue
        pair = [contents(files[name], attributes) for files in (first, second)]
        found += pair
        yield from (f"{name}: {line}" for line in comparison(*pair, differences_only))
    check_attributes(attributes, found, " and ".join(places))


def main() -> None:
    args = arguments()
    places = args.dir.split(",")
    if len(places) != 1 + args.compare or not all(places):
        raise CheckpointError(
            f"{args.dir}: --compare takes two places with a comma between them, and one is taken without it"
        )
    if args.compare:
        for line in compared(places, args.attributes, args.diff):
            print(line)
        return
    checkpoint = {name: contents(path, args.attributes) for name, path in checkpoint_files(places[0]).items()}
    check_attributes(args.attributes, checkpoint.values(), places[0])
    for name, values in checkpoint.items():
        if values or not args.attributes:
            print(name)
        for path, value in values.items():
            print(f"  {path or 'all of it'}: {described(value, args.statistics)}")
    if args.interactive:
        code.interact(local={"checkpoint": checkpoint}, banner="checkpoint[file][path]")


if __name__ == "__main__":
    run_main(main)

"""Rules for the sources of data."""

import math
from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.steps import Steps

RULES = Steps()
rule = RULES.reading

PARTS = ("train", "valid", "test")
PATHS = tuple(f"{part}_data_paths" for part in PARTS)


@rule(*PATHS, "data_path")
def _data_sources(args: Any) -> Iterator[str]:
    given = [key for key in PATHS if getattr(args, key)]
    missing = [key for key in PATHS if key not in given]
    if given and missing:
        yield f"{', '.join(given)} given, but {', '.join(missing)} missing; set all three"
    if given and args.data_path is not None:
        yield f"data_path={args.data_path!r} and {', '.join(given)} exclude each other; keep one kind"


def _must_fit(paths_key: str, companion: str) -> None:
    @rule(paths_key, companion)
    def _fits(args: Any) -> Iterator[str]:
        paths, values = getattr(args, paths_key) or [], getattr(args, companion)
        if values is None:
            return
        if len(values) != len(paths):
            yield f"{companion} has {len(values)} entries, but {paths_key} has {len(paths)}"
        if companion.endswith("weights") and (min(values, default=1) < 0 or not sum(values)):
            yield f"{companion}={values} must not be negative, and not all 0"


for _part in PARTS:
    for _companion in ("label_data_paths", "data_weights"):
        _must_fit(f"{_part}_data_paths", f"{_part}_{_companion}")


@rule("split")
def _split(args: Any) -> Iterator[str]:
    try:
        shares = [float(share) for share in args.split.replace("/", ",").split(",")]
    except ValueError:
        yield f'split={args.split!r} must be up to three numbers, such as "969,30,1"'
        return
    if len(shares) > 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        yield f'split={args.split!r} must be up to three shares of at least 0, such as "969,30,1"'

"""What must hold for the stages of a pipeline."""

import re
from collections.abc import Iterator
from typing import Any

KEYS = ("num_layers", "pipe_parallel_size", "pipe_partition_method", "zero_stage")
BY_TYPE = "type:"


def problems(args: Any) -> Iterator[str]:
    """What is wrong with the stages of a configuration."""
    stages = args.pipe_parallel_size
    if args.num_layers and 0 < args.num_layers < stages:
        yield f"pipe_parallel_size={stages} exceeds num_layers={args.num_layers}; some stage would be empty"
    if args.zero_stage >= 2 and stages >= 1:
        yield (
            f"zero_optimization.stage={args.zero_stage} cannot be combined with pipe_parallel_size={stages}: the "
            "pipeline engine needs whole gradients; use stage 0 or 1, or pipe_parallel_size: 0"
        )
    yield from _method_problems(args.pipe_partition_method)


def _method_problems(method: str) -> Iterator[str]:
    lowered = method.lower()  # as DeepSpeed reads it
    if not lowered.startswith(BY_TYPE):
        if lowered not in ("parameters", "uniform"):
            yield f"pipe_partition_method={method!r} must be parameters, uniform or {BY_TYPE}REGEX"
        return
    try:
        re.compile(lowered.removeprefix(BY_TYPE))
    except re.error as error:
        yield f"pipe_partition_method={method!r} has no regular expression behind {BY_TYPE} ({error})"

"""Rules for the stages of a pipeline."""

import re
from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.steps import Steps

RULES = Steps()
rule = RULES.reading

BY_TYPE = "type:"


@rule("num_layers", "pipe_parallel_size")
def _stages(args: Any) -> Iterator[str]:
    if args.num_layers and args.num_layers > 0 and args.pipe_parallel_size > args.num_layers:
        stages = args.pipe_parallel_size
        yield f"pipe_parallel_size={stages} exceeds num_layers={args.num_layers}; some stage would be empty"


@rule("zero_stage", "pipe_parallel_size")
def _zero(args: Any) -> Iterator[str]:
    if args.zero_stage >= 2 and args.pipe_parallel_size >= 1:
        yield (
            f"zero_optimization.stage={args.zero_stage} cannot be combined with pipe_parallel_size="
            f"{args.pipe_parallel_size}: the pipeline engine needs whole gradients; use stage 0 or 1, or "
            f"pipe_parallel_size: 0"
        )


@rule("pipe_partition_method")
def _division(args: Any) -> Iterator[str]:
    method = args.pipe_partition_method.lower()  # as DeepSpeed reads it
    if not method.startswith(BY_TYPE):
        if method not in ("parameters", "uniform"):
            yield (
                f"pipe_partition_method={args.pipe_partition_method!r} must be parameters, uniform or {BY_TYPE}REGEX"
            )
        return
    try:
        re.compile(method.removeprefix(BY_TYPE))
    except re.error as error:
        yield (
            f"pipe_partition_method={args.pipe_partition_method!r} has no regular expression behind {BY_TYPE} ({error})"
        )

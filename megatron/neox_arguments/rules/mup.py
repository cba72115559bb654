"""Rules for the maximal update parametrisation."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.fields.training import Mup
from megatron.neox_arguments.steps import Steps

RULES = Steps()
rule = RULES.reading

# Factors that act with use_mup only; mup_rp_embedding_mult always acts.
FACTORS = ("mup_init_scale", "mup_attn_temp", "mup_output_temp", "mup_embedding_mult")
KEYS = (
    *(field.name for field in dataclasses.fields(Mup)),
    "attention_softmax_scale",
    "embedding_size",
    "hidden_size",
    "pipe_parallel_size",
)


@rule(*KEYS)
def _mup(args: Any) -> Iterator[str]:
    for key in FACTORS:
        value = getattr(args, key)
        if value <= 0:
            yield f"{key}={value} must be above 0"
        elif value != 1.0 and not args.use_mup:
            yield f"{key}={value} has no effect without use_mup: true"
    if args.mup_width_scale < 2:
        yield f"mup_width_scale={args.mup_width_scale} must be at least 2, or nothing shows which dimensions grow"
    for key in ("use_mup", "save_base_shapes", "coord_check"):
        if getattr(args, key) and not args.base_shapes_file:
            yield f"{key} needs base_shapes_file"
    if args.coord_check and not args.use_mup:
        yield "coord_check compares muP with standard parametrisation; it needs use_mup: true"
    if args.coord_check and args.pipe_parallel_size > 1:
        yield f"coord_check needs pipe_parallel_size: 0 or 1, not {args.pipe_parallel_size}"
    if args.base_shapes_file and not (args.use_mup or args.save_base_shapes):
        yield "base_shapes_file has no effect without use_mup or save_base_shapes"
    if args.use_mup and args.attention_softmax_scale is not None:
        yield "attention_softmax_scale and use_mup both set the scale of attention; use mup_attn_temp"
    if args.use_mup and args.embedding_size not in (None, args.hidden_size):
        yield "use_mup cannot be combined with embedding_size: the projections between the two widths would need a base"

"""The widths of the two matrices of an MLP, for the rules before a run and for the model."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from megatron.common.errors import ConfigError
from megatron.neox_arguments.block_sizes import has_mlp

GATED_ACTIVATIONS = frozenset({"geglu", "reglu", "swiglu", "bilinear", "glu"})


class MlpSizes(NamedTuple):
    """Output width of linear1 (both halves of a gated one together) and input width of linear2."""

    linear1_output: int
    linear2_input: int


def mlp_sizes(args: Any, multiple_of: int | None = None) -> MlpSizes:
    """The widths of a config: those of ffn_hidden_size, or GPT-NeoX's from intermediate_size or expansion_factor.

    GPT-NeoX gives a gated MLP a third of intermediate_size per half, which keeps its parameter count, and rounds the
    two widths up on their own.

    Args: multiple_of: what widths are rounded up to; mlp_multiple_of when None.
    Raises: ConfigError if the two matrices would not fit together.
    """
    multiple = args.mlp_multiple_of if multiple_of is None else multiple_of
    gated = args.activation in GATED_ACTIVATIONS
    literal = args.ffn_hidden_size
    if literal is not None:
        return MlpSizes(2 * literal if gated else literal, literal)
    width = args.intermediate_size
    if width is None:
        width = int((4 if args.expansion_factor is None else args.expansion_factor) * args.hidden_size)
    up = int(width * 2 / 3) if gated else width
    down = up // 2 if gated else width
    sizes = MlpSizes(_round_up(up, 2 * multiple), _round_up(down, multiple))
    produced = sizes.linear1_output // 2 if gated else sizes.linear1_output
    if produced != sizes.linear2_input:
        raise ConfigError(
            f"MLP width {width} ({_source(args)}) with mlp_multiple_of={multiple} makes the two MLP matrices disagree "
            f"({produced} features come out of the first, {sizes.linear2_input} go into the second); choose another "
            f"width, or state it by ffn_hidden_size: {sizes.linear2_input}"
        )
    return sizes


def _source(args: Any) -> str:
    """What the width follows from, as the user wrote it."""
    for key in ("intermediate_size", "expansion_factor"):
        if (value := getattr(args, key)) is not None:
            return f"{key}={value}"
    return f"4 x hidden_size={args.hidden_size}"


def has_dense_mlp(args: Any) -> bool:
    """Whether any layer has an MLP that is no mixture of experts."""
    return has_mlp(args) and (args.moe_num_experts == 1 or args.moe_expert_interval > 1)


def _round_up(width: int, multiple: int) -> int:
    return math.ceil(width / multiple) * multiple


def problems(args: Any) -> Iterator[str]:
    """What is wrong with the widths of a configuration, in itself and over its tensor-parallel ranks."""
    given = {
        key: getattr(args, key)
        for key in ("intermediate_size", "expansion_factor", "ffn_hidden_size")
        if getattr(args, key) is not None
    }
    if len(given) > 1:
        text = " and ".join(f"{key}={value}" for key, value in given.items())
        yield f"{text} {'both' if len(given) == 2 else 'all'} set the width of the MLP; keep one"
        return
    if not has_mlp(args):
        if args.ffn_hidden_size is not None:
            yield f"ffn_hidden_size={args.ffn_hidden_size} is the width of MLPs, but attention_config names none"
        return
    if not args.hidden_size or min(args.hidden_size, args.mlp_multiple_of, *given.values()) <= 0:
        return
    if args.ffn_hidden_size is not None and args.ffn_hidden_size % args.mlp_multiple_of:
        yield (
            f"ffn_hidden_size={args.ffn_hidden_size} is taken literally, and is not a multiple of mlp_multiple_of="
            f"{args.mlp_multiple_of}; remove one"
        )
    if not has_dense_mlp(args):
        return
    try:
        width = mlp_sizes(args).linear2_input
    except ConfigError as error:
        yield str(error)
        return
    if width % args.model_parallel_size:
        yield f"MLP width {width} must be a multiple of model_parallel_size={args.model_parallel_size}"

"""The widths of blocks that are no transformer layers, and what must hold for them."""

from collections.abc import Iterator
from typing import Any

WITHOUT_HEADS = ("gmlp", "amlp", "mamba")  # blocks in which num_attention_heads has no part
WITHOUT_MLP = (*WITHOUT_HEADS, "rwkv")
GMLP_FACTOR = 4


def has_heads(args: Any) -> bool:
    """Whether any layer is cut into heads."""
    return any(kind not in WITHOUT_HEADS for kind in args.attention_config or ["global"])


def has_mlp(args: Any) -> bool:
    """Whether any layer is a transformer layer."""
    return any(kind not in WITHOUT_MLP for kind in args.attention_config or ["global"])


def mamba_channels(args: Any) -> int:
    """Channels of a mamba block: intermediate_size, or expansion_factor, 2 when unset, times hidden_size."""
    return _width(args, 2)


def gmlp_width(args: Any, factor: float = GMLP_FACTOR) -> int:
    """Features of each half of a gmlp or amlp block: intermediate_size, or expansion_factor, else `factor`, times
    hidden_size."""
    return _width(args, factor)


def _width(args: Any, factor: float) -> int:
    return args.intermediate_size or int((args.expansion_factor or factor) * args.hidden_size)


def problems(args: Any) -> Iterator[str]:
    """What is wrong with the blocks of a configuration."""
    kinds = args.attention_config or []
    if not args.hidden_size or args.hidden_size < 0:
        return
    ranks = args.model_parallel_size
    if "mamba" in kinds:
        yield from _cut(mamba_channels(args), ranks, "mamba blocks have", "channels")
        if args.mamba_inner_func_fusion and args.mamba_use_bias_in_linears:
            yield (
                "mamba_inner_func_fusion knows no biases in the linear layers: set mamba_inner_func_fusion or "
                "mamba_use_bias_in_linears to false"
            )
    if {"gmlp", "amlp"} & set(kinds):
        yield from _cut(gmlp_width(args), ranks, "gmlp and amlp blocks have", "features in each half")


def _cut(width: int, ranks: int, what: str, unit: str) -> Iterator[str]:
    if width % ranks:
        yield (
            f"{what} {width} {unit} (intermediate_size, or expansion_factor times hidden_size), which must be a "
            f"multiple of model_parallel_size={ranks}"
        )

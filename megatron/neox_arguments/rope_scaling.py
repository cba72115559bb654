"""The key `rope_scaling`: what each kind of scaling asks for, under Hugging Face's names."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from megatron.neox_arguments.attention_sizes import head_size
from megatron.neox_arguments.suggestions import nearest

LENGTH = "original_max_position_embeddings"


class Keys(NamedTuple):
    """What stands beside rope_type."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


KINDS = {
    "linear": Keys(("factor",)),
    "dynamic": Keys(("factor",), (LENGTH,)),
    "yarn": Keys(
        ("factor",),
        (LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": Keys(("factor", "low_freq_factor", "high_freq_factor", LENGTH)),
    "longrope": Keys(("short_factor", "long_factor", LENGTH), ("factor", "attention_factor")),
}
_NUMBERS = (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
)


def kind_of(scaling: dict) -> Any:
    """The kind; files of Hugging Face's older versions call it type."""
    return scaling.get("rope_type", scaling.get("type"))


def options_of(scaling: dict) -> dict[str, Any]:
    """Everything but the kind, in a form that can be compared."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in scaling.items()
        if key not in ("rope_type", "type")
    }


def rotated_size(args: Any) -> int:
    """Features of a head that rotary positions turn."""
    return int(head_size(args) * args.rotary_pct)


def problems(args: Any) -> Iterator[str]:
    """What is wrong with the scaling of a configuration."""
    scaling = args.rope_scaling
    if scaling is None:
        return
    if args.pos_emb != "rotary":
        yield f"rope_scaling changes rotary positions, not pos_emb: {args.pos_emb}; remove it"
    kind = kind_of(scaling)
    if not isinstance(kind, str) or kind not in KINDS:
        close = nearest(str(kind), KINDS)
        hint = f"; did you mean {close!r}?" if close else ""
        yield f"rope_scaling.rope_type={kind!r} must be one of {', '.join(KINDS)}{hint}"
        return
    keys, options = KINDS[kind], options_of(scaling)
    for key in keys.required:
        if options.get(key) is None:
            yield f"rope_scaling.{key} is missing; rope_type {kind} needs it"
    known = (*keys.required, *keys.optional)
    for key in options:
        if key not in known:
            close = nearest(key, known)
            hint = f"; did you mean {close!r}?" if close else ""
            yield f"rope_scaling.{key} is not known to rope_type {kind}, which takes {', '.join(known)}{hint}"
    options = {key: value for key, value in options.items() if key in known}
    yield from _values(options, args)
    yield from _pairs(options)
    yield from _lists(options, args)
    if kind == "dynamic" and _sized(args) and rotated_size(args) < 4:
        yield "rope_scaling.rope_type=dynamic needs at least 4 rotated features: raise rotary_pct or the size of heads"


def _sized(args: Any) -> bool:
    return bool(args.hidden_size and args.num_attention_heads)


def _values(options: dict[str, Any], args: Any) -> Iterator[str]:
    def wrong(key: str, right: Callable[[Any], bool]) -> bool:
        return options.get(key) is not None and not right(options[key])

    if wrong("factor", lambda value: _number(value) and value >= 1):
        yield f"rope_scaling.factor={options['factor']!r} must be a number of at least 1"
    for key in _NUMBERS:
        if wrong(key, lambda value: _number(value) and value > 0):
            yield f"rope_scaling.{key}={options[key]!r} must be a number above 0"
    if wrong("truncate", lambda value: isinstance(value, bool)):
        yield f"rope_scaling.truncate={options['truncate']!r} must be true or false"
    if wrong(LENGTH, lambda value: type(value) is int and value > 1):
        yield f"rope_scaling.{LENGTH}={options[LENGTH]!r} must be a whole number above 1"
    elif wrong(LENGTH, lambda value: value <= (args.max_position_embeddings or value)):
        yield (
            f"rope_scaling.{LENGTH}={options[LENGTH]} is the length before scaling and must not exceed "
            f"max_position_embeddings={args.max_position_embeddings}, the one after"
        )


def _pairs(options: dict[str, Any]) -> Iterator[str]:
    for low, high, defaults in (
        ("beta_slow", "beta_fast", (1, 32)),
        ("low_freq_factor", "high_freq_factor", (None, None)),
    ):
        pair: list[Any] = [
            options.get(key) or default for key, default in zip((low, high), defaults, strict=True)
        ]
        if all(map(_number, pair)) and pair[1] <= pair[0]:
            yield f"rope_scaling.{high}={pair[1]} must be above rope_scaling.{low}={pair[0]}"


def _lists(options: dict[str, Any], args: Any) -> Iterator[str]:
    for key in ("short_factor", "long_factor"):
        factors = options.get(key)
        if factors is None:
            continue
        if not isinstance(factors, tuple) or not all(_number(one) and one > 0 for one in factors):
            yield f"rope_scaling.{key} must be a list of numbers above 0"
        elif _sized(args) and len(factors) != rotated_size(args) // 2:
            yield (
                f"rope_scaling.{key} has {len(factors)} numbers, but half of the rotated features of a head are "
                f"{rotated_size(args) // 2}"
            )


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

"""The options of `sparsity_config`, and which attention kinds of `attention_config` read them.

Without torch, as the launcher checks them; megatron/model/attention/sparse.py says what they mean.
"""

from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.suggestions import nearest

_BLOCKS = {"block": 16}
_LAYOUTS = {**_BLOCKS, "different_layout_per_head": False}
_GLOBAL = {"global_block_indices": [0], "global_block_end_indices": None}
# kind -> option -> default
SPARSITY_OPTIONS: dict[str, dict[str, Any]] = {
    "local": {**_BLOCKS, "num_local_blocks": None, "num_sliding_window_blocks": 4, "window": None},
    "sparse_fixed": {
        **_LAYOUTS,
        "num_local_blocks": 4,
        "num_global_blocks": 1,
        "num_different_global_patterns": 1,
    },
    "sparse_variable": {**_LAYOUTS, **_GLOBAL, "num_random_blocks": 0, "local_window_blocks": [4]},
    "bigbird": {**_LAYOUTS, "num_random_blocks": 1, "num_sliding_window_blocks": 3, "num_global_blocks": 1},
    "bslongformer": {**_LAYOUTS, **_GLOBAL, "num_sliding_window_blocks": 3},
}
_LISTS = ("local_window_blocks", "global_block_indices", "global_block_end_indices")
_MAY_BE_ZERO = ("num_random_blocks", "num_global_blocks", "global_block_indices")


def sparsity_options(kind: str, config: dict | None) -> dict[str, Any]:
    """All options of an attention kind: what `sparsity_config` sets, else their defaults."""
    given = config or {}
    return {option: given.get(option, default) for option, default in SPARSITY_OPTIONS[kind].items()}


def sparsity_problems(config: dict | None, kinds: list[str]) -> Iterator[str]:
    """What is wrong with a sparsity_config for layers of these kinds."""
    if config is None:
        return
    sparse = [kind for kind in SPARSITY_OPTIONS if kind in kinds]
    if not sparse:
        yield (
            f"sparsity_config has no effect without a sparse layer in attention_config "
            f"({', '.join(SPARSITY_OPTIONS)})"
        )
        return
    known = {option for options in SPARSITY_OPTIONS.values() for option in options}
    read = {option for kind in sparse for option in SPARSITY_OPTIONS[kind]}
    sound = True
    problem: str | None
    for option, value in config.items():
        if option not in known:
            close = nearest(str(option), known)
            hint = f"; did you mean {close!r}?" if close else f"; the options are {', '.join(sorted(known))}"
            problem = f"is unknown{hint}"
        elif option not in read:
            problem = f"is read by none of the layers ({', '.join(sparse)})"
        else:
            defaults = [SPARSITY_OPTIONS[kind].get(option) for kind in sparse]
            problem = _value_problem(option, value, may_be_unset=not any(defaults))
        if problem:
            sound = False
            yield f"sparsity_config: {option} {problem}"
    if sound:
        for kind in sparse:
            yield from _combinations(kind, sparsity_options(kind, config), config, sparse)


def _value_problem(option: str, value: Any, may_be_unset: bool) -> str | None:
    if option == "different_layout_per_head":
        return None if isinstance(value, bool) else f"must be true or false, not {value!r}"
    if value is None and may_be_unset:
        return None
    least = 0 if option in _MAY_BE_ZERO else 1
    if option not in _LISTS:
        return None if _whole(value, least) else f"must be a whole number of at least {least}, not {value!r}"
    if isinstance(value, list) and value and all(_whole(item, least) for item in value):
        return None
    return f"must be a list of whole numbers of at least {least}, not {value!r}"


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _combinations(kind: str, options: dict[str, Any], given: dict, kinds: list[str]) -> Iterator[str]:
    if kind == "local" and options["window"] is not None:
        for other in ("block", "num_local_blocks", "num_sliding_window_blocks"):
            if other in given and all(
                other not in SPARSITY_OPTIONS[reader] for reader in kinds if reader != kind
            ):
                yield f"sparsity_config: window and {other} both set the window of local layers; keep one"
    if kind == "sparse_fixed":
        local, global_ = options["num_local_blocks"], options["num_global_blocks"]
        patterns = options["num_different_global_patterns"]
        if not global_ or local % global_:
            yield f"sparsity_config: num_global_blocks={global_} must divide num_local_blocks={local}"
        elif patterns > local // global_:
            yield (
                f"sparsity_config: num_different_global_patterns={patterns} exceeds the {local // global_} places that "
                f"num_local_blocks={local} has for num_global_blocks={global_}"
            )
        if patterns > 1 and not options["different_layout_per_head"]:
            yield (
                f"sparsity_config: num_different_global_patterns={patterns} needs different_layout_per_head: true"
            )
    ends, starts = options.get("global_block_end_indices"), options.get("global_block_indices", [])
    if ends and (len(ends) != len(starts) or any(map(int.__le__, ends, starts))):
        yield (
            f"sparsity_config: global_block_end_indices={ends} must give an end above each of "
            f"global_block_indices={starts}"
        )

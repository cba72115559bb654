"""No key is accepted and ignored: what is not built, or has no effect, is refused by the marks on the fields."""

from dataclasses import Field
from typing import Any

from megatron.neox_arguments.markers import mark_of


def unsupported(declared: Field, value: Any) -> str | None:
    """Why a value is refused for a key, None if it is not."""
    mark = mark_of(declared)
    if (
        mark is None
        or mark.kind in ("derived", "runtime")
        or any(_same(value, allowed) for allowed in mark.allowed)
    ):
        return None
    if mark.kind == "retired":
        return f"{declared.name}={value!r} has no effect: {mark.reason}"
    if mark.kind == "later":
        return f"{declared.name}={value!r} is not supported yet; leave it at {mark.allowed[0]!r}"
    built = ", ".join(str(choice) for choice in mark.allowed if choice is not None)
    return f"{declared.name}={value!r} is not supported yet; available: {built}"


def _same(value: Any, allowed: Any) -> bool:
    return value == allowed and (type(value) is type(allowed) or not isinstance(value, bool))

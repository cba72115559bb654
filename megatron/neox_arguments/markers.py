"""Markers of configuration fields: what the program does with a key beyond checking its type.

A plain default means: the user may set it and the program honours it. The markers below say otherwise, so that no key
is ever accepted and ignored; megatron/neox_arguments/support.py acts on them.
"""

from dataclasses import Field, dataclass, field
from typing import Any

MARK = "neox"


@dataclass(frozen=True)
class Mark:
    """How a key is treated. kind: later | partly | retired | derived | runtime."""

    kind: str
    allowed: tuple = ()
    reason: str = ""


def later(default: Any, *allowed: Any) -> Any:
    """A feature that is not built yet: only the default and the `allowed` values are accepted."""
    return field(default=default, metadata={MARK: Mark("later", (default, *allowed))})


def partly(default: Any, *built: Any) -> Any:
    """A choice of which only the default and the `built` values exist so far."""
    return field(default=default, metadata={MARK: Mark("partly", (default, *built))})


def retired(default: Any, reason: str) -> Any:
    """A key without effect: kept so that old files load, refused away from its default with the reason."""
    return field(default=default, metadata={MARK: Mark("retired", (default,), reason)})


def derived(default: Any, source: str) -> Any:
    """A value computed from the keys named by `source`; a given value must agree with the computed one."""
    return field(default=default, metadata={MARK: Mark("derived", reason=source)})


def runtime(default: Any = None) -> Any:
    """A value the program itself fills in at launch or while it runs."""
    return field(default=default, metadata={MARK: Mark("runtime")})


def mark_of(declared: Field) -> Mark | None:
    """The mark of a dataclass field, None for an ordinary option."""
    return declared.metadata.get(MARK)

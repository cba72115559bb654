"""The one table of choices: what a config value names, and what the choice can do.

A choice is registered beside its code::

    @register("norm", "rmsnorm", capabilities=Capabilities(...))
    class RMSNorm(nn.Module): ...

The package of a kind is imported, with all its modules, at the first look-up, so a new file is enough to add a choice.
What a choice cannot be combined with stands beside it as well (`lacks`); megatron/neox_arguments/features.py compares
that with what a config asks for.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from megatron.common.errors import ConfigError

# kind -> package (or module) whose import registers all choices of that kind
KINDS = {
    "block": "megatron.model.blocks",
    "router": "megatron.model.moe.routers",
    "norm": "megatron.model.norms",
    "activation": "megatron.model.activations",
    "positional embedding": "megatron.model.positional_embeddings",
    "rope scaling": "megatron.model.positional_embeddings",
    "attention": "megatron.model.attention",
    "attention back-end": "megatron.model.attention",
    "init method": "megatron.model.init_functions",
    "optimizer": "megatron.optimizers",
    "learning rate schedule": "megatron.learning_rates",
    "packing": "megatron.data.packing",
    "dataset": "megatron.data",
    "tokenizer": "megatron.tokenizer",
    "corpus": "megatron.data.corpora",
    "objective": "megatron.objectives",
    "family": "megatron.families",
    "log sink": "megatron.logging.sinks",
}

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Entry:
    """A registered choice.

    Attributes:
        name: canonical name.
        value: the registered object.
        capabilities: what else the choice declares, in a form that its kind defines.
        lacks: features it cannot be combined with -> why not (the end of the sentence "it does not support ...: ").
        example: config values, beside the key that selects it, with which a tiny model makes use of it.
        needs: optional package without which it cannot be had, so that nothing tries it where that is not installed.
    """

    name: str
    value: Any
    capabilities: Any = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""


_ENTRIES: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
_LOADED: set[str] = set()


def register(
    kind: str,
    name: str,
    *aliases: str,
    capabilities: Any = None,
    lacks: Mapping[str, str] | None = None,
    example: Mapping[str, Any] | None = None,
    needs: str = "",
) -> Callable[[Choice], Choice]:
    """Register the decorated object as choice `name` (and aliases) of `kind`; see Entry. Names are case-insensitive."""

    def add(value: Choice) -> Choice:
        entry = Entry(name, value, capabilities, lacks or {}, example or {}, needs)
        for spelling in (name, *aliases):
            previous = _ENTRIES[kind].setdefault(spelling.lower(), entry)
            assert previous is entry, f"{kind} {spelling!r} is registered twice"
        return value

    return add


def entry(kind: str, name: str) -> Entry:
    """The entry of a choice.

    Raises: ConfigError that lists the choices and the nearest match.
    """
    _load(kind)
    found = _ENTRIES[kind].get(name.lower())
    if found is None:
        close = difflib.get_close_matches(name.lower(), _ENTRIES[kind], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown {kind} {name!r}: choose one of {', '.join(names(kind))}{hint}")
    return found


def lookup(kind: str, name: str) -> Any:
    """The registered object of a choice."""
    return entry(kind, name).value


def capabilities(kind: str, name: str) -> Any:
    """What a choice declares to support."""
    return entry(kind, name).capabilities


def names(kind: str) -> list[str]:
    """Canonical names of all choices of a kind, sorted."""
    _load(kind)
    return sorted({found.name for found in _ENTRIES[kind].values()})


def _load(kind: str) -> None:
    if kind in _LOADED:
        return
    package = importlib.import_module(KINDS[kind])
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        importlib.import_module(f"{KINDS[kind]}.{module.name}")
    _LOADED.add(kind)

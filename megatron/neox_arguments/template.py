"""The common base of the groups of configuration keys."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from megatron.common.errors import ConfigError
from megatron.neox_arguments.suggestions import unknown_key


@dataclass
class NeoXArgsTemplate:
    """A group of keys: defaults can be listed, values updated by name."""

    def defaults(self) -> Iterator[tuple[str, Any]]:
        """Yield (key, default) of every field."""
        for declared in fields(self):
            yield declared.name, declared.default

    def update_value(self, key: str, value: Any) -> None:
        """Set one key.

        Raises: ConfigError for an unknown key.
        """
        if not hasattr(self, key):
            raise ConfigError(unknown_key(key, [declared.name for declared in fields(self)]))
        setattr(self, key, value)

    def update_values(self, values: dict[str, Any]) -> None:
        """Set several keys."""
        for key, value in values.items():
            self.update_value(key, value)

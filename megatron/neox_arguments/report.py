"""The configuration as text."""

from dataclasses import fields
from typing import Any


def describe_all(args: Any) -> str:
    """Every key with its value, those that differ from their default first."""
    lines: dict[str, list[str]] = {"updated": [], "default": []}
    for declared in sorted(fields(args), key=lambda declared: declared.name):
        value = getattr(args, declared.name)
        state = "default" if value == declared.default else "updated"
        lines[state].append(
            f"  {declared.name} ".ljust(34, ".") + f" {_shown(value)} ".ljust(34, ".") + f" {state}"
        )
    rule = "-" * 26
    return "\n".join(
        [f"{rule} arguments {rule}", *lines["updated"], *lines["default"], f"{rule} end of arguments {rule}"]
    )


def describe_changes(args: Any, hidden: tuple[str, ...] = ("config_files", "git_hash", "user_script")) -> str:
    """The keys that differ from their defaults, one a line."""
    changed = {key: value for key, value in args.handover().items() if key not in hidden}
    width = max(map(len, changed), default=0)
    return "\n".join(f"  {key:<{width}}  {_shown(value)}" for key, value in sorted(changed.items()))


def _shown(value: Any) -> str:
    """A value on one line."""
    return str(value).replace("\n", "\\n")

"""The configurations of runs, side by side."""

import json
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from megatron.neox_arguments import NeoXArgs
from megatron.run_report.records import Run

LONGEST = 1000
UNSET = ""  # shown for a key that a run does not have
# The files that a configuration was read from, word for word; their keys are listed anyway.
_HIDDEN = ("config_files",)


@dataclass(frozen=True)
class Setting:
    """A key, its value in each run as text, and whether they differ, and whether one is not the default."""

    key: str
    values: tuple[str, ...]
    differs: bool
    changed: bool


def settings(runs: list[Run]) -> list[Setting]:
    """All keys of all runs, in the order of the alphabet."""
    keys = {key for run in runs for key in run.config} - set(_HIDDEN)
    # A run without a configuration differs from no other.
    known = [run for run in runs if run.config]
    found = []
    for key in sorted(keys):
        values = tuple(_text(run.config[key]) if key in run.config else UNSET for run in runs)
        compared = {_text(run.config[key]) if key in run.config else None for run in known}
        changed = key not in _defaults() or compared != {_defaults()[key]}
        found.append(Setting(key, values, differs=len(compared) > 1, changed=changed))
    return found


@cache
def _defaults() -> dict[str, str]:
    return {declared.name: _text(declared.default) for declared in fields(NeoXArgs)}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."

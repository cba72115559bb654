"""Results of an evaluation: as a file, as numbers for trackers."""

import json
import time
from pathlib import Path
from typing import Any

from megatron.common.files import atomic_write_text, check_writable, make_folder

PREFIX_KEY = "eval_results_prefix"


def plain(results: dict[str, Any]) -> dict[str, Any]:
    """Results as JSON can hold them; functions, number types and the like become text or numbers."""
    return json.loads(json.dumps(results, default=_plain_value))


def _plain_value(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    # Numbers of numpy and torch.
    return value.item() if hasattr(value, "item") else str(value)


def metrics_of(results: dict[str, Any]) -> dict[str, float]:
    """`<task>_<metric>` -> value of all numbers. The harness calls a metric "name,filter"; the filter `none` is left
    out, any other is the end of the name."""
    found = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if comma and isinstance(value, (int, float)):
                name = metric if kind == "none" else f"{metric}_{kind}"
                found[f"{task}_{name}"] = float(value)
    return found


def check_place(prefix: str) -> None:
    """Find out before the evaluation whether its results can be written. Raises: NeoXError if not."""
    check_writable(Path(f"{prefix}_").parent, PREFIX_KEY)


def write_results(results: dict[str, Any], prefix: str, folder: str | Path = ".") -> Path:
    """Write `[PREFIX_]eval_results_MM-DD-YYYY-HH-MM-SS.json`. Returns: its path."""
    stamp = time.strftime("%m-%d-%Y-%H-%M-%S")
    path = Path(folder, f"{prefix}_eval_results_{stamp}.json" if prefix else f"eval_results_{stamp}.json")
    make_folder(path.parent, PREFIX_KEY)
    atomic_write_text(path, json.dumps(results, indent=4, ensure_ascii=False))
    return path

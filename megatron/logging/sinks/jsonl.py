"""A plain file with one JSON object per step, for scripts and for those without a tracker."""

import json
from pathlib import Path

from megatron.registry import register


@register("log sink", "jsonl")
class JsonLinesSink:
    """Appends to `metrics.jsonl` in `log_dir`."""

    def __init__(self, neox_args):
        directory = Path(neox_args.log_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._file = open(directory / "metrics.jsonl", "a", encoding="utf-8", buffering=1)

    @staticmethod
    def wanted(neox_args, rank: int) -> bool:
        return rank == 0 and bool(neox_args.log_dir)

    def log(self, values: dict[str, float], step: int) -> None:
        self._file.write(json.dumps({"iteration": step, **values}) + "\n")

    def close(self) -> None:
        self._file.close()

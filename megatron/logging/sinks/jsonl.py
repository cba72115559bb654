"""A plain file with one JSON object per record, for scripts, tools/report.py and those without a tracker."""

import json
import os
import time
from pathlib import Path

from megatron.neox_arguments.log_files import save_configuration
from megatron.registry import register

FILE = "metrics.jsonl"


@register("log sink", "jsonl")
class JsonLinesSink:
    """Appends to `metrics.jsonl` in `log_dir`, else `save`, else `tensorboard_dir`; the configuration lies beside it.

    A record is {"iteration": step, "time": seconds since 1970, tag: value, ...}.
    """

    def __init__(self, neox_args):
        directory = Path(_folder(neox_args))
        directory.mkdir(parents=True, exist_ok=True)
        save_configuration(directory, neox_args.all_config)
        path = directory / FILE
        torn = _ends_within_a_line(path)
        self._file = open(path, "a", encoding="utf-8", buffering=1)
        if torn:  # by a process that was killed: what follows must not end up in the same line
            self._file.write("\n")

    @staticmethod
    def wanted(neox_args, rank: int) -> bool:
        return rank == 0 and bool(_folder(neox_args))

    def log(self, values: dict[str, float], step: int) -> None:
        self._file.write(json.dumps({"iteration": step, "time": round(time.time(), 3), **values}) + "\n")

    def close(self, failed: bool = False) -> None:
        self._file.close()


def _folder(neox_args) -> str | None:
    return neox_args.log_dir or neox_args.save or neox_args.tensorboard_dir


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"

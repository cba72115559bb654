"""What a run leaves behind: metrics.jsonl and, beside it, neox_args.json."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron.common.errors import DataError

METRICS, CONFIG = "metrics.jsonl", "neox_args.json"
START_MARK = "runtime/devices"  # a tag that is written at the start of a run, and only then
FROM_OUTSIDE = "eval"  # of tags that eval.py writes, long after the training perhaps and for any checkpoint
# One value for every parameter: far too much for a page.
OF_PARAMETERS = ("gradient_norms", "parameter_norms", "pct_grad_zeros", "optimizer_state_norms")


@dataclass(frozen=True)
class Series:
    """Values over iterations, which rise: int64 [n], float64 [n]."""

    iterations: np.ndarray
    values: np.ndarray

    def finite(self) -> "Series":
        """Without the values that are infinite or not a number."""
        keep = np.isfinite(self.values)
        return Series(self.iterations[keep], self.values[keep])

    def __len__(self) -> int:
        return len(self.values)


EMPTY = Series(np.empty(0, np.int64), np.empty(0))


@dataclass
class Start:
    """A process that began to train. iteration: it began after it; time: in seconds since 1970, None if not recorded;
    lost: iterations of its predecessor that it had to repeat."""

    iteration: int
    time: float | None
    lost: int = 0
    devices: int | None = None
    startup: float | None = None


@dataclass
class Run:
    """A run as one curve, however often it was resumed.

    Attributes: series: by tag; seconds: of running, at iterations; starts: the first one and every resumption; unread:
    lines that are no records; replaced: records of an earlier run in the same file.
    """

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    seconds: Series = EMPTY
    starts: list[Start] = field(default_factory=list)
    last_time: float | None = None
    unread: int = 0
    replaced: int = 0

    def __getitem__(self, tag: str) -> Series:
        """The series of a tag, empty if the run has none."""
        return self.series.get(tag, EMPTY)

    @property
    def last_iteration(self) -> int:
        ends = [int(series.iterations[-1]) for series in self.series.values() if len(series)]
        return max(ends, default=0)


def read_runs(places: list[str]) -> list[Run]:
    """The runs of folders (or metrics files), under names that tell them apart.

    Raises: DataError naming the folder that has no metrics, or a file that cannot be read.
    """
    files = [find_metrics(Path(place)) for place in places]
    return [read_run(file, name) for file, name in zip(files, _names(files), strict=True)]


def find_metrics(place: Path) -> Path:
    """The metrics file of a run: `place` itself, or in it, or in the log_dir of a run whose checkpoints are in it.

    Raises: DataError.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise DataError(
            f"{place} does not exist: name the folder that a run writes its {METRICS} to, its log_dir"
        )
    if (place / METRICS).is_file():
        return place / METRICS
    for folder in _log_dirs(place):
        if (folder / METRICS).is_file():
            return folder / METRICS
    raise DataError(
        f"{place} has no {METRICS}: name the log_dir of a run (where it is not set, its save or tensorboard_dir)"
    )


def _log_dirs(place: Path) -> Iterator[Path]:
    """Where the log_dir of the run that saved its checkpoints in `place` may be."""
    try:
        tag = (place / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return
    log_dir = _read_config(place / tag / CONFIG).get("log_dir")
    if isinstance(log_dir, str) and log_dir:
        # A relative one was relative to where the run was started.
        yield Path(log_dir)
        yield from (parent / log_dir for parent in place.resolve().parents)


def _names(files: list[Path]) -> list[str]:
    """The shortest ends of the folders' paths by which all can be told apart."""
    parts = [file.resolve().parent.parts if file.name == METRICS else file.resolve().parts for file in files]
    depth = 1
    while depth < max(map(len, parts)) and len({path[-depth:] for path in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(path[-depth:]).replace("//", "/") for path in parts]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def read_run(file: Path, name: str) -> Run:
    """Raises: DataError if the file cannot be read."""
    run = Run(name, file.parent, _read_config(file.parent / CONFIG))
    curve = _Curve(run)
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    curve.add(line)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    curve.finish()
    return run


class _Curve:
    """Puts the records of all starts of a run together: what a start repeats replaces what was there."""

    def __init__(self, run: Run):
        self._run = run
        self._kept: list[
            tuple[int, float | None, dict[str, float]]
        ] = []  # iteration, seconds of running, values
        self._reached = 0  # iteration of the training
        self._began: float | None = None  # time of the current start
        self._before = 0.0  # seconds of running of all earlier starts

    def add(self, line: str) -> None:
        record = _parsed(line)
        if record is None:
            self._run.unread += 1
            return
        iteration, time, values = record
        if values and all(tag.partition("/")[0] == FROM_OUTSIDE for tag in values):
            self._kept.append((iteration, None, values))
            return
        if START_MARK in values:
            self._start(iteration, time, values)
        elif not self._run.starts or iteration < self._reached:
            self._start_without_mark(iteration, time)
        self._reached = iteration
        if time is not None:
            self._began = time if self._began is None else self._began
            self._run.last_time = time
        seconds = None if time is None or self._began is None else self._before + max(0.0, time - self._began)
        self._kept.append((iteration, seconds, values))

    def _start(self, iteration: int, time: float | None, values: dict[str, float]) -> None:
        # Another run, unless the launcher has started a job again that had not saved anything.
        if iteration == 0 and self._run.starts and not values.get("runtime/restarts"):
            self._run.replaced += len(self._kept)
            self._run.starts, self._kept, self._reached, self._before = [], [], 0, 0.0
        lost = self._rewind(iteration)
        start = Start(iteration, time, lost, int(values[START_MARK]), values.get("runtime/startup_time"))
        self._begin(start)

    def _start_without_mark(self, iteration: int, time: float | None) -> None:
        reached = self._reached
        self._rewind(iteration - 1)
        self._begin(Start(self._reached, time, reached - self._reached))

    def _begin(self, start: Start) -> None:
        if self._run.starts and self._began is not None and self._run.last_time is not None:
            self._before += max(0.0, self._run.last_time - self._began)
        self._run.starts.append(start)
        self._began = start.time

    def _rewind(self, iteration: int) -> int:
        """Drop what is later; returns how many iterations that is."""
        lost = max(0, self._reached - iteration)
        self._kept = [record for record in self._kept if record[0] <= iteration]
        self._reached = max((record[0] for record in self._kept), default=0)
        return lost

    def finish(self) -> None:
        found: dict[str, tuple[list[int], list[float]]] = {}
        for iteration, seconds, values in sorted(self._kept, key=lambda record: record[0]):
            if seconds is not None:
                values = {**values, "": seconds}
            for tag, value in values.items():
                iterations, numbers = found.setdefault(tag, ([], []))
                if iterations and iterations[-1] == iteration:
                    numbers[-1] = value  # the later one holds
                else:
                    iterations.append(iteration)
                    numbers.append(value)
        series = {
            tag: Series(np.array(x, np.int64), np.array(y, np.float64)) for tag, (x, y) in found.items()
        }
        self._run.seconds = series.pop("", EMPTY)
        self._run.series = series


def _parsed(line: str) -> tuple[int, float | None, dict[str, float]] | None:
    """(iteration, time, values) of a line; None if it is no record, as where a run was killed while it wrote."""
    try:
        record = json.loads(line)
        iteration, time = record.pop("iteration"), record.pop("time", None)
        values = {
            tag: float(value)
            for tag, value in record.items()
            if type(value) in (int, float) and tag and tag.partition("/")[0] not in OF_PARAMETERS
        }
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError):
        return None
    if type(iteration) is not int or not 0 <= iteration < 2**62 or type(time) not in (int, float, type(None)):
        return None
    return iteration, time, values

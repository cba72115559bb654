"""Curriculum by sequence length (arXiv 2108.06084): training begins with short samples and reaches long ones.

The length is a closed function of the iteration, so a resumed run goes on exactly where it was.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron.neox_arguments.suggestions import nearest, unknown_key

_KEYS = ("enabled", "curriculum_type", "min_difficulty", "max_difficulty", "schedule_type", "schedule_config")
_SCHEDULES = {
    "fixed_linear": ("total_curriculum_step", "difficulty_step"),
    "fixed_root": ("total_curriculum_step", "difficulty_step", "root_degree"),
    "fixed_discrete": ("difficulty", "max_step"),
}


@dataclass(frozen=True)
class Curriculum:
    """Steps of a staircase: `lengths[i]` tokens up to iteration `ends[i]`, the last length for good; or, where `ends`
    is empty, a root of the iteration between lengths[0] and lengths[1] that `total` iterations take.

    Attributes: step: lengths of the root schedule are multiples of it; degree: of the root, 1 is linear.
    """

    lengths: tuple[int, ...]
    ends: tuple[int, ...] = ()
    total: int = 1
    step: int = 1
    degree: int = 1

    @classmethod
    def from_config(cls, options: dict[str, Any] | None) -> "Curriculum | None":
        """Of a checked `curriculum_learning` dictionary; None where it is unset or not enabled."""
        if not options or not options.get("enabled", True):
            return None
        schedule = options["schedule_config"]
        if options["schedule_type"] == "fixed_discrete":
            return cls(tuple(schedule["difficulty"]), tuple(schedule["max_step"]))
        return cls(
            (options["min_difficulty"], options["max_difficulty"]),
            total=schedule["total_curriculum_step"],
            step=schedule["difficulty_step"],
            degree=schedule.get("root_degree", 1),
        )

    def length_at(self, iteration: int) -> int:
        """Tokens per sample at an iteration, counted from 1."""
        if self.ends:
            return next(
                (length for length, end in zip(self.lengths, self.ends, strict=False) if iteration <= end),
                self.lengths[-1],
            )
        lowest, highest = self.lengths
        if iteration >= self.total:
            return highest
        grown = math.floor((iteration / self.total) ** (1 / self.degree) * (highest - lowest) + lowest)
        first = math.ceil(lowest / self.step) * self.step
        return min(max(grown // self.step * self.step, first), highest)

    def tokens_until(self, iteration: int) -> int:
        """The sum of length_at over 1 .. iteration, found stair by stair."""
        total, first = 0, 1
        while first <= iteration:
            end = min(self._end_of_stair(first), iteration)
            total += (end - first + 1) * self.length_at(first)
            first = end + 1
        return total

    def _end_of_stair(self, iteration: int) -> int:
        """Last iteration of the same length as this one, at most 2^62."""
        if self.ends:
            return next((end for end in self.ends if iteration <= end), 2**62)
        if iteration >= self.total:
            return 2**62
        later = range(iteration, self.total + 1)
        return later[bisect_right(later, self.length_at(iteration), key=self.length_at) - 1]

    def all_lengths(self) -> set[int]:
        """Every length that occurs."""
        if self.ends:
            return set(self.lengths)
        lowest, highest = self.lengths
        return {*range(math.ceil(lowest / self.step) * self.step, highest, self.step), highest}


def length_at(args: Any, iteration: int) -> int:
    """Tokens per training sample of a run at an iteration, counted from 1."""
    curriculum = Curriculum.from_config(args.curriculum_learning)
    return args.seq_length if curriculum is None else curriculum.length_at(iteration)


def tokens_until(args: Any, iteration: int) -> int:
    """Tokens of one sample of every iteration up to and with this one, together."""
    curriculum = Curriculum.from_config(args.curriculum_learning)
    if curriculum is None:
        return args.seq_length * iteration
    return curriculum.tokens_until(iteration)


def shortest_length(args: Any) -> int | None:
    """Tokens of the shortest samples of a curriculum; None without one, or with one that is wrong."""
    options = args.curriculum_learning
    if not options or any(_shape_problems(options)):
        return None
    curriculum = Curriculum.from_config(options)
    return None if curriculum is None else min(curriculum.all_lengths())


def problems(args: Any) -> Iterator[str]:
    """What is wrong with `curriculum_learning`, and with the lengths that it leads to."""
    options = args.curriculum_learning
    if not options or options.get("enabled", True) is False:
        return
    found = list(_shape_problems(options))
    yield from found
    if found:
        return
    curriculum = Curriculum.from_config(options)
    assert curriculum is not None
    if (longest := max(curriculum.lengths)) > args.seq_length:
        yield f"curriculum_learning reaches {longest} tokens, more than seq_length={args.seq_length}"
        return
    ranks = args.model_parallel_size
    uneven = [length for length in sorted(curriculum.all_lengths()) if length % ranks]
    if args.sequence_parallel and uneven:
        yield (
            f"curriculum_learning reaches {uneven[0]} tokens, which sequence_parallel cannot divide among "
            f"model_parallel_size={ranks} ranks; make difficulty_step and every length a multiple of {ranks}"
        )


def _shape_problems(options: dict[str, Any]) -> Iterator[str]:
    for key in options:
        if key not in _KEYS:
            yield f"curriculum_learning: {unknown_key(key, _KEYS)}"
    if not isinstance(options.get("enabled", True), bool):
        yield f"curriculum_learning.enabled={options['enabled']!r} must be true or false"
    if options.get("curriculum_type", "seqlen") != "seqlen":
        yield f"curriculum_learning.curriculum_type={options['curriculum_type']!r} must be 'seqlen'"
    kind, schedule = options.get("schedule_type"), options.get("schedule_config")
    if not isinstance(kind, str) or kind not in _SCHEDULES:
        close = nearest(str(kind), _SCHEDULES)
        hint = f"; did you mean {close!r}?" if close else ""
        yield f"curriculum_learning.schedule_type={kind!r} must be one of {', '.join(_SCHEDULES)}{hint}"
        return
    if not isinstance(schedule, dict):
        yield f"curriculum_learning.schedule_config must be a mapping of {', '.join(_SCHEDULES[kind])}"
        return
    for key in schedule:
        if key not in _SCHEDULES[kind]:
            yield f"curriculum_learning.schedule_config: {unknown_key(key, _SCHEDULES[kind])}"
    yield from _stairs_problems(schedule) if kind == "fixed_discrete" else _root_problems(options, schedule)


def _root_problems(options: dict[str, Any], schedule: dict[str, Any]) -> Iterator[str]:
    places = [("", key, options.get(key)) for key in ("min_difficulty", "max_difficulty")]
    needed = (key for key in _SCHEDULES[options["schedule_type"]])
    places += [("schedule_config.", key, schedule.get(key)) for key in needed]
    found = False
    for place, key, value in places:
        if type(value) is not int or value < 1:
            found = True
            yield f"curriculum_learning.{place}{key}={value!r} must be a whole number above 0"
    if not found and options["min_difficulty"] > options["max_difficulty"]:
        lowest, highest = options["min_difficulty"], options["max_difficulty"]
        yield f"curriculum_learning: min_difficulty={lowest} exceeds max_difficulty={highest}"


def _stairs_problems(schedule: dict[str, Any]) -> Iterator[str]:
    lengths: Any = schedule.get("difficulty")
    ends: Any = schedule.get("max_step")
    for key, values in (("difficulty", lengths), ("max_step", ends)):
        if not isinstance(values, list) or not all(type(value) is int and value > 0 for value in values):
            yield f"curriculum_learning.schedule_config.{key}={values!r} must be a list of whole numbers above 0"
            return
    if not ends or len(lengths) not in (len(ends), len(ends) + 1) or ends != sorted(ends):
        yield (
            f"curriculum_learning.schedule_config: difficulty has {len(lengths)} lengths and max_step {len(ends)}; "
            "max_step must name the last iteration of each length but the final one, in rising order"
        )

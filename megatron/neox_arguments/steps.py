"""Derivations and rules, collected beside their code, and the engine that runs them.

A step names the keys it reads and writes. When one of them is known to be bad (wrong type, failed derivation) the step
is skipped, so that every message the user sees is about a mistake of his and none about its consequences.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from megatron.common.errors import ConfigError, NeoXError


@dataclass
class Findings:
    """What is wrong with a configuration: messages, and the keys that can no longer be relied on."""

    problems: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def add(self, problems: str | Iterable[str], *keys: str) -> None:
        """Record problems and the keys they spoil."""
        for problem in [problems] if isinstance(problems, str) else problems:
            # A derivation and a rule may find the same.
            if problem not in self.problems:
                self.problems.append(problem)
        self.broken.update(keys)


@dataclass(frozen=True)
class Step:
    """A function of the arguments with the keys it touches."""

    function: Callable[[Any], Any]
    reads: frozenset[str]
    writes: frozenset[str]

    def run(self, args: Any, findings: Findings) -> None:
        """Run unless an input is broken; a raised error becomes a finding that spoils the outputs."""
        if self.reads & findings.broken:
            findings.broken.update(self.writes)
            return
        try:
            problems = self.function(args)
        except NeoXError as error:
            findings.add(error.problems if isinstance(error, ConfigError) else str(error), *self.writes)
        else:
            findings.add(list(problems or []))


class Steps:
    """An ordered collection of steps, filled by decorators."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    @classmethod
    def of(cls, *parts: "Steps") -> "Steps":
        """The steps of several collections, one after the other."""
        whole = cls()
        whole._steps = [step for part in parts for step in part._steps]
        return whole

    def reading(self, *reads: str, writes: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
        """Add the decorated function, which reads and writes these keys."""

        def add(function: Callable) -> Callable:
            self._steps.append(Step(function, frozenset(reads), frozenset(writes)))
            return function

        return add

    def run(self, args: Any, findings: Findings) -> None:
        """Run all steps in order."""
        for step in self._steps:
            step.run(args, findings)

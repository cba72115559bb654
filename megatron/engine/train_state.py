"""What a run has done so far; the config is never written to."""

from dataclasses import dataclass


@dataclass
class TrainState:
    """Running counters.

    Attributes: iteration: optimizer steps attempted; last_saved: iteration of the newest checkpoint this run wrote or
    started from; skipped: steps given up because a gradient overflowed.
    """

    iteration: int = 0
    last_saved: int | None = None
    skipped: int = 0

    @classmethod
    def resumed_at(cls, iteration: int) -> "TrainState":
        """The state of a run that goes on from a loaded iteration, or starts at 0."""
        return cls(iteration=iteration, last_saved=iteration or None)

    def advance(self, skipped: int) -> None:
        """Count a step."""
        self.iteration += 1
        self.skipped += skipped

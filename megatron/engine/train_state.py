"""What a run has done so far; the config is never written to."""

from dataclasses import dataclass


@dataclass
class TrainState:
    """Running counters.

    Attributes: iteration: optimizer steps attempted; last_saved: iteration of the newest checkpoint this run wrote or
    started from; skipped: steps given up because a gradient overflowed; to_be_continued: a signal has ended the run for
    another one to go on; do_train, do_valid, do_test: whether there is data to train on, to validate and to test with,
    the same on all ranks.
    """

    iteration: int = 0
    last_saved: int | None = None
    skipped: int = 0
    to_be_continued: bool = False
    do_train: bool = True
    do_valid: bool = False
    do_test: bool = False

    @classmethod
    def resumed_at(cls, iteration: int, data_loaders) -> "TrainState":
        """The state of a run that goes on from a loaded iteration, or starts at 0, with the given loaders."""
        return cls(
            iteration=iteration,
            last_saved=iteration or None,
            do_train=data_loaders.do_train,
            do_valid=data_loaders.do_valid,
            do_test=data_loaders.do_test,
        )

    def advance(self, skipped: int) -> None:
        """Count a step."""
        self.iteration += 1
        self.skipped += skipped

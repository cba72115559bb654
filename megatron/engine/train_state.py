"""What a run has done so far; the config is never written to."""

from dataclasses import dataclass


@dataclass
class TrainState:
    """Running counters.

    Attributes: iteration: optimizer steps attempted; consumed_samples: samples seen by all replicas; last_saved: the
    iteration of the newest checkpoint of this run; skipped: steps given up because a gradient overflowed.
    """

    iteration: int = 0
    consumed_samples: int = 0
    last_saved: int | None = None
    skipped: int = 0

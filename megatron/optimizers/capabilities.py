"""What an optimizer declares where it is registered."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """Attributes:
    states: fp32 values kept for each parameter, for estimates of memory.
    weight_decay: takes the config's weight_decay; the others decay only by optimizer.params.weight_decay.
    """

    states: int
    weight_decay: bool = True

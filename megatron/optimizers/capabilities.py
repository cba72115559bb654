"""What an optimizer declares where it is registered."""

from dataclasses import dataclass

# What all but Adam and SGD lack.
NO_MUP = {
    "maximal update parametrisation": "how its learning rates change with the width is known for adam and sgd only"
}


@dataclass(frozen=True)
class Capabilities:
    """Attributes:
    states: fp32 values kept for each parameter, for estimates of memory.
    weight_decay: takes the config's weight_decay; the others decay only by optimizer.params.weight_decay.
    """

    states: int
    weight_decay: bool = True

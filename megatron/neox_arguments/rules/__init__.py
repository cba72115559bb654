"""What must hold between the values of a configuration.

Each rule names the keys it reads and yields its complaints, one line each.
"""

from megatron.neox_arguments.rules import (
    architecture,
    data,
    launch,
    mup,
    optimizer,
    pipeline,
    ranges,
    services,
    serving,
    training,
)
from megatron.neox_arguments.steps import Steps

__all__ = ["RULES"]

_SUBJECTS = (ranges, architecture, mup, optimizer, training, pipeline, data, services, serving, launch)
# What is missing or out of its range is said first.
RULES = Steps.of(*(subject.RULES for subject in _SUBJECTS))

"""What is optimised. An objective turns a batch into model inputs and targets, and outputs and targets into a loss.

DeepSpeed's pipeline engine asks for exactly that pair, so pipelined and plain runs share every line.
"""

from megatron.objectives.base import Loss, Objective
from megatron.registry import lookup

__all__ = ["Loss", "Objective", "build_objective"]


def build_objective(neox_args) -> Objective:
    """The objective that `train_impl` names."""
    return lookup("objective", neox_args.train_impl)(neox_args)

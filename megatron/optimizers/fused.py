"""DeepSpeed's fused optimizers, which it compiles where they are used first."""

from collections.abc import Callable

import torch

from megatron.common.console import print_rank_0


def fused_or_none(
    make: Callable[..., torch.optim.Optimizer], param_groups: list[dict], **settings
) -> torch.optim.Optimizer | None:
    """What `make`, one of DeepSpeed's classes, gives; None, and a line about it, where its kernel cannot be compiled.

    Only the attempt tells: what DeepSpeed says of a kernel's being compatible does not ask for CUDA's toolkit, one of
    torch's own version, ninja and a compiler.
    """
    try:
        return make(param_groups, **settings)
    # Each of them is missed by an exception of its own, down to plain ones.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        print_rank_0(
            f"DeepSpeed's {make.__name__} cannot be compiled here ({reason}): torch's operations take its place"
        )
        return None

"""When to save."""

import math


def is_save_iter(neox_args, iteration: int) -> bool:
    """Whether a checkpoint is due after `iteration`: by `extra_save_iters`, or by `checkpoint_factor` as a multiple
    (linear scale) or as the whole part of a power (log scale)."""
    if neox_args.extra_save_iters and iteration in neox_args.extra_save_iters:
        return True
    factor = neox_args.checkpoint_factor
    if not factor or iteration < 1:
        return False
    if neox_args.checkpoint_scale == "linear":
        return iteration % int(factor) == 0
    exponent = math.log(iteration, factor)
    # The powers on both sides, so that rounding of the logarithm cannot miss one.
    return any(
        int(factor**power) == iteration for power in range(max(0, int(exponent) - 1), int(exponent) + 3)
    )

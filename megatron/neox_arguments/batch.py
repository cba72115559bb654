"""The batch triple: train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x data parallel."""

import math

from megatron.common.errors import ConfigError


def calculate_batch_parameters(
    dp_world_size: int,
    train_batch: int | None = None,
    micro_batch: int | None = None,
    grad_acc: int | None = None,
) -> tuple[int, int, int]:
    """Fill in what is missing of (train batch, micro batch, accumulation steps), rounding down.

    Raises: ConfigError if neither the train batch nor the micro batch is given.
    """
    if train_batch is not None and micro_batch is not None:
        if grad_acc is None:
            grad_acc = train_batch // max(micro_batch, 1) // dp_world_size
        return train_batch, micro_batch, grad_acc
    steps = 1 if grad_acc is None else grad_acc
    if train_batch is not None:
        return train_batch, train_batch // dp_world_size // max(steps, 1), steps
    if micro_batch is not None:
        return micro_batch * steps * dp_world_size, micro_batch, steps
    raise ConfigError("set train_micro_batch_size_per_gpu or train_batch_size")


def check_divisible(
    dp_world_size: int, train_batch: int | None, micro_batch: int | None, grad_acc: int | None
) -> None:
    """Speaks of the values as they were given, None for those that are to follow from the others.

    Raises: ConfigError if the train batch cannot be divided by what it consists of.
    """
    given = [part for part in (micro_batch, grad_acc) if part is not None]
    if train_batch is None or len(given) == 2 or min(given, default=1) < 1:
        return
    parts = {
        "the data-parallel size": dp_world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": grad_acc,
    }
    factors = {name: value for name, value in parts.items() if value is not None}
    if train_batch % math.prod(factors.values()):
        product = " x ".join(f"{name} ({value})" for name, value in factors.items())
        raise ConfigError(f"train_batch_size={train_batch} must be a multiple of {product}")


def check_batch_parameters(dp_world_size: int, train_batch: int, micro_batch: int, grad_acc: int) -> None:
    """Raises: ConfigError unless all are positive and the product fits."""
    named = (
        f"train_batch_size={train_batch}, train_micro_batch_size_per_gpu={micro_batch}, "
        f"gradient_accumulation_steps={grad_acc}, data-parallel size {dp_world_size}"
    )
    if min(train_batch, micro_batch, grad_acc) <= 0:
        raise ConfigError(f"batch sizes must be positive: {named}")
    if train_batch != micro_batch * grad_acc * dp_world_size:
        raise ConfigError(
            f"train_batch_size must be micro batch x accumulation x data-parallel size, "
            f"which is {micro_batch * grad_acc * dp_world_size}: {named}"
        )

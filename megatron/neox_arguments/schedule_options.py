"""The learning-rate schedule as the config gives it: its length and warm-up in iterations, and what cannot be."""

from collections.abc import Iterator
from typing import Any

KEYS = (
    "lr_decay_iters",
    "lr_decay_fraction",
    "train_iters",
    "warmup",
    "warmup_iters",
    "warmup_tokens",
    "wsd_decay_fraction",
    "train_batch_size",
    "seq_length",
)
_DEFAULT_WARMUP = 0.01


def schedule_iterations(args: Any) -> int | None:
    """Length of the schedule: lr_decay_iters, or lr_decay_fraction of the training, or the training; at least 1. None
    while the length of training is not known."""
    length = args.lr_decay_iters
    if length is None and args.train_iters is not None:
        fraction = 1.0 if args.lr_decay_fraction is None else args.lr_decay_fraction
        length = int(args.train_iters * fraction)
    return None if length is None else max(1, length)


def warmup_iterations(args: Any) -> float:
    """Length of the warm-up, maybe a fraction, of a config whose schedule has a length."""
    if args.warmup_iters is not None:
        return args.warmup_iters
    if args.warmup_tokens is not None:
        return args.warmup_tokens / (args.train_batch_size * args.seq_length)
    return args.warmup * schedule_iterations(args)


def problems(args: Any) -> Iterator[str]:
    """Complaints about the keys of the schedule."""
    if args.lr_decay_iters is not None and args.lr_decay_fraction is not None:
        yield "lr_decay_iters and lr_decay_fraction both set the length of the schedule; keep one"
    if not 0 < args.wsd_decay_fraction <= 1:
        yield f"wsd_decay_fraction={args.wsd_decay_fraction} must be above 0 and at most 1"
    given = [key for key in ("warmup_iters", "warmup_tokens") if getattr(args, key) is not None]
    given += ["warmup"] if given and args.warmup != _DEFAULT_WARMUP else []
    if len(given) > 1:
        yield f"{' and '.join(given)} all set the length of the warm-up; keep one"
        return
    for key in given:
        value, length = getattr(args, key), schedule_iterations(args)
        if value < 0:
            yield f"{key}={value} must not be negative"
        elif length is not None and args.seq_length and (warmup := warmup_iterations(args)) > length:
            yield (
                f"{key}={value} makes a warm-up of {warmup:g} iterations, longer than the schedule of {length}; "
                f"shorten it or lengthen lr_decay_iters"
            )

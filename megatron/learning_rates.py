"""Learning rate schedules: linear warm-up, then a registered decay shape, in closed form and clamped at both ends."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.common.errors import CheckpointError, ConfigError
from megatron.neox_arguments.schedule_options import schedule_iterations, warmup_iterations
from megatron.registry import entry, register

NO_OPTIONS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Curve:
    """How the value of a shape becomes a rate.

    Attributes:
        spans_to_minimum: it runs between the start and the minimum rate; others run towards 0 and are cut off at the
            minimum.
        unbounded: it is not finished at the end of the schedule and goes on beyond it.
        options: keys of the config that the shape takes besides.
    """

    spans_to_minimum: bool = False
    unbounded: bool = False
    options: tuple[str, ...] = ()


@register("learning rate schedule", "constant", capabilities=Curve())
def constant(progress: float) -> float:
    """Fraction of the start rate at `progress` in [0, 1] of the decay: always 1."""
    return 1.0


@register("learning rate schedule", "linear", capabilities=Curve())
def linear(progress: float) -> float:
    """Falls to 0 on a straight line."""
    return 1.0 - progress


@register("learning rate schedule", "exponential", capabilities=Curve(unbounded=True))
def exponential(progress: float) -> float:
    """Halves (e^-0.693) over one schedule length; goes on falling after it."""
    return math.exp(-0.693 * progress)


@register("learning rate schedule", "cosine", capabilities=Curve(spans_to_minimum=True))
def cosine(progress: float) -> float:
    """Half a cosine period (arXiv:1608.03983), without restarts."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


@register(
    "learning rate schedule",
    "wsd",
    capabilities=Curve(spans_to_minimum=True, options=("wsd_decay_fraction", "wsd_decay_style")),
    example={"wsd_decay_fraction": 0.5},
)
def wsd(progress: float, wsd_decay_fraction: float, wsd_decay_style: str) -> float:
    """Stays at 1, then falls to 0 within the last `wsd_decay_fraction` (arXiv:2404.06395)."""
    decayed = max(0.0, (progress - (1.0 - wsd_decay_fraction)) / wsd_decay_fraction)
    return _WSD_DECAYS[wsd_decay_style](min(decayed, 1.0))


def _ten_halvings(progress: float) -> float:
    """Halves ten times, shifted and stretched to end at 0."""
    last = 2.0**-10
    return (2.0 ** (-10.0 * progress) - last) / (1.0 - last)


_WSD_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": linear,
    "cosine": cosine,
    "exponential": _ten_halvings,
    # arXiv:2405.18392
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
}


def learning_rate(
    step: int,
    start_lr: float,
    warmup_iter: float,
    total_iters: float,
    decay_style: str,
    min_lr: float = 0.0,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> float:
    """The rate of optimizer update `step` (0 and 1 are both the first one).

    Args: warmup_iter: length of the warm-up in iterations, may be fractional; total_iters: length of the schedule;
    options: what the style takes besides.
    """
    if warmup_iter > 0 and step <= warmup_iter:
        # A warm-up shorter than one step must not push the rate above its maximum, hence the min.
        return start_lr * min(1.0, max(1, step) / warmup_iter)
    found = entry("learning rate schedule", decay_style)
    curve: Curve = found.capabilities
    length = total_iters - warmup_iter
    progress = (step - warmup_iter) / length if length > 0 else 1.0
    if not curve.unbounded:
        progress = min(progress, 1.0)
    floor = min_lr if curve.spans_to_minimum else 0.0
    return max(min_lr, floor + (start_lr - floor) * found.value(progress, **options))


# What defines a schedule, in the words of the config.
_SCHEDULE = {
    "start_lr": "a maximum of",
    "warmup_iter": "iterations of warm-up:",
    "end_iter": "lr_decay_iters",
    "decay_style": "lr_decay_style",
    "min_lr": "min_lr",
    "options": "the options",
}


class AnnealingLR:
    """Sets the rate of every parameter group of an optimizer, step by step; resumable.

    Args: last_iter: updates already made; use_checkpoint_lr_scheduler: take the schedule's values from a checkpoint;
    override_lr_scheduler: keep this object's values whatever the checkpoint says; use_mup: divide the rate by the
    group's `width_mult`; options: the keys that the decay style takes besides, all of them.
    """

    def __init__(
        self,
        optimizer,
        start_lr: float,
        warmup_iter: float,
        total_iters: float,
        decay_style: str,
        last_iter: int,
        min_lr: float = 0.0,
        use_checkpoint_lr_scheduler: bool = True,
        override_lr_scheduler: bool = False,
        use_mup: bool = False,
        options: Mapping[str, Any] = NO_OPTIONS,
    ):
        if override_lr_scheduler and use_checkpoint_lr_scheduler:
            raise ConfigError(
                "override_lr_scheduler and use_checkpoint_lr_scheduler exclude each other: set one"
            )
        wanted = entry("learning rate schedule", decay_style).capabilities.options
        assert set(options) == set(wanted), f"{decay_style} takes the options {wanted}"
        self.optimizer = optimizer
        self.start_lr, self.min_lr = start_lr, min_lr
        self.warmup_iter, self.end_iter = warmup_iter, total_iters
        self.decay_style, self.options = decay_style, dict(options)
        self.use_checkpoint_lr_scheduler = use_checkpoint_lr_scheduler
        self.override_lr_scheduler = override_lr_scheduler
        self.use_mup = use_mup
        self.num_iters = last_iter
        self.step(last_iter)

    @classmethod
    def from_config(cls, optimizer, neox_args) -> "AnnealingLR":
        """The schedule of a config whose length of training is known."""
        wanted = entry("learning rate schedule", neox_args.lr_decay_style).capabilities.options
        return cls(
            optimizer,
            start_lr=neox_args.lr,
            warmup_iter=warmup_iterations(neox_args),
            total_iters=schedule_iterations(neox_args),
            decay_style=neox_args.lr_decay_style,
            last_iter=0,
            min_lr=neox_args.min_lr,
            use_checkpoint_lr_scheduler=neox_args.use_checkpoint_lr_scheduler,
            override_lr_scheduler=neox_args.override_lr_scheduler,
            use_mup=neox_args.use_mup,
            options={key: getattr(neox_args, key) for key in wanted},
        )

    def get_lr(self) -> float:
        """The rate of the current number of updates."""
        return learning_rate(
            self.num_iters,
            self.start_lr,
            self.warmup_iter,
            self.end_iter,
            self.decay_style,
            self.min_lr,
            self.options,
        )

    def get_last_lr(self) -> list[float]:
        """The rates in force, one per group (what DeepSpeed asks for when it prints)."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, step_num: int | None = None) -> None:
        """Move on by one update, or to `step_num`, and set the groups' rates."""
        self.num_iters = self.num_iters + 1 if step_num is None else step_num
        rate = self.get_lr()
        for group in self.optimizer.param_groups:
            group["lr"] = rate / group.get("width_mult", 1.0) if self.use_mup else rate

    def state_dict(self) -> dict:
        return {
            "start_lr": self.start_lr,
            "warmup_iter": self.warmup_iter,
            "num_iters": self.num_iters,
            "decay_style": self.decay_style,
            "end_iter": self.end_iter,
            "min_lr": self.min_lr,
            "options": dict(self.options),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue a saved schedule.

        Raises: CheckpointError when the schedule differs and neither override nor use-checkpoint decides which holds.
        """
        # GPT-NeoX's schedules have no options.
        state = {"options": {}, **state}
        differing = [key for key in _SCHEDULE if state[key] != getattr(self, key)]
        if differing and not (self.override_lr_scheduler or self.use_checkpoint_lr_scheduler):
            listed = ", ".join(
                f"{_SCHEDULE[key]} {state[key]} (now {getattr(self, key)})" for key in differing
            )
            raise CheckpointError(
                f"the checkpoint's learning rate schedule has {listed}: set override_lr_scheduler to keep the config's "
                "or use_checkpoint_lr_scheduler to take the checkpoint's"
            )
        if not self.override_lr_scheduler:
            for key in differing:
                setattr(self, key, state[key])
        self.step(state["num_iters"])

"""Rules for the optimizer dictionary."""

import math
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from megatron.neox_arguments.fields.optimizer import NeoXArgsOptimizer
from megatron.neox_arguments.steps import Steps
from megatron.neox_arguments.suggestions import nearest, unknown_key

RULES = Steps()
rule = RULES.reading

KINDS = (*get_args(get_type_hints(NeoXArgsOptimizer)["optimizer_type"]), "adamw")
_COMMON = ("lr", "weight_decay")
# The last three mean nothing to Adam; GPT-NeoX writes them itself.
_ADAM = (*_COMMON, "betas", "eps", "adam_w_mode", "torch_adam", "momentum", "freeze_step", "cuda_aware")
# kind -> the parameters it takes
PARAMS = {
    "adam": _ADAM,
    "adamw": _ADAM,
    "cpu_adam": _ADAM,
    "cpu_torch_adam": _ADAM,
    "onebitadam": (*_COMMON, "betas", "eps", "freeze_step", "cuda_aware", "comm_backend_name"),
    "sgd": (*_COMMON, "momentum", "dampening", "nesterov"),
    "lion": (*_COMMON, "betas"),
    "madgrad_wd": (*_COMMON, "momentum", "eps"),
    "sm3": (*_COMMON, "momentum", "beta", "eps"),
    "muon": (*_COMMON, "momentum", "nesterov", "ns_steps", "adjust_lr_fn", "betas", "eps"),
}
_NOT_NEGATIVE = ("lr", "eps", "weight_decay", "momentum", "dampening")
_FRACTIONS = {"beta": ("sm3",), "momentum": ("madgrad_wd", "sm3", "muon")}
_CHOICES = {"adjust_lr_fn": ("match_rms_adamw", "original")}
_SWITCHES = ("nesterov", "adam_w_mode", "torch_adam", "cuda_aware")
_WHOLE = {"ns_steps": 1, "freeze_step": 0}


@rule("optimizer", "optimizer_type", "lr")
def _optimizer(args: Any) -> Iterator[str]:
    optimizer = args.optimizer
    if optimizer is None:
        return
    for key in optimizer:
        if key not in ("type", "params"):
            yield f"optimizer: {unknown_key(key, ('type', 'params'))}"
    kind = optimizer["type"].lower()
    if kind not in KINDS:
        close = nearest(kind, KINDS)
        hint = f"; did you mean {close!r}?" if close else ""
        yield f"optimizer.type={optimizer['type']!r} is unknown: choose one of {', '.join(KINDS)}{hint}"
    else:
        yield from _check_params(kind, optimizer["params"])


def _check_params(kind: str, params: dict[str, Any]) -> Iterator[str]:
    for key, value in params.items():
        if key not in PARAMS[kind]:
            yield f"optimizer.params: {unknown_key(key, PARAMS[kind])}"
        elif (wanted := _wanted(kind, key, value)) is not None:
            yield f"optimizer.params.{key}={value!r} must {wanted}"
    if (
        kind == "sgd"
        and params.get("nesterov") is True
        and (not params.get("momentum") or params.get("dampening"))
    ):
        yield "optimizer.params.nesterov: true needs momentum above 0 and no dampening"


def _wanted(kind: str, key: str, value: Any) -> str | None:
    """What a value should have been, None if it is that."""
    if key == "betas":
        if not (isinstance(value, list) and len(value) == 2 and all(_is_number(beta) for beta in value)):
            return "be a list of two numbers"
        return None if all(0 <= beta < 1 for beta in value) else "lie in [0, 1)"
    if key in _FRACTIONS and kind in _FRACTIONS[key]:
        return None if _is_number(value) and 0 <= value < 1 else "be a number in [0, 1)"
    if key in _NOT_NEGATIVE:
        return None if _is_number(value) and value >= 0 else "be a number of at least 0"
    if key in _CHOICES:
        return None if value in _CHOICES[key] else f"be one of {', '.join(_CHOICES[key])}"
    if key in _WHOLE:
        least = _WHOLE[key]
        return None if type(value) is int and value >= least else f"be a whole number of at least {least}"
    if key in _SWITCHES:
        return None if isinstance(value, bool) else "be true or false"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

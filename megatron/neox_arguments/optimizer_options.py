"""What may stand in the optimizer dictionary."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from megatron.neox_arguments.fields.optimizer import NeoXArgsOptimizer
from megatron.neox_arguments.suggestions import nearest, unknown_key

KINDS = (*get_args(get_type_hints(NeoXArgsOptimizer)["optimizer_type"]), "adamw")
_COMMON = ("lr", "weight_decay")
# The last five mean nothing to Adam; GPT-NeoX writes some of them itself.
_ADAM = (*_COMMON, "betas", "eps", "adam_w_mode", "torch_adam", "momentum", "freeze_step", "cuda_aware")
# kind -> the parameters it takes
BUILT = {
    "adam": _ADAM,
    "adamw": _ADAM,
    "cpu_adam": _ADAM,
    "cpu_torch_adam": _ADAM,
    "sgd": (*_COMMON, "momentum", "dampening", "nesterov"),
}


def check_optimizer(optimizer: dict | None) -> Iterator[str]:
    """Complaints about an optimizer dictionary whose type and params have the right shape."""
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
    elif kind not in BUILT:
        yield f"optimizer.type={optimizer['type']!r} is not supported yet; available: {', '.join(BUILT)}"
    else:
        yield from _check_params(optimizer["params"], BUILT[kind])


def _check_params(params: dict[str, Any], known: tuple[str, ...]) -> Iterator[str]:
    for key, value in params.items():
        if key not in known:
            yield f"optimizer.params: {unknown_key(key, known)}"
        elif key == "betas":
            if not (isinstance(value, list) and len(value) == 2 and all(_is_number(beta) for beta in value)):
                yield f"optimizer.params.betas={value!r} must be a list of two numbers"
            elif not all(0 <= beta < 1 for beta in value):
                yield f"optimizer.params.betas={value!r} must lie in [0, 1)"
        elif key in ("lr", "eps", "weight_decay", "momentum", "dampening") and not (
            _is_number(value) and value >= 0
        ):
            yield f"optimizer.params.{key}={value!r} must be a number of at least 0"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)

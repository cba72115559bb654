"""DeepSpeed's dictionary, made of this configuration: old keys translated, defaults that matter sent explicitly."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from megatron.neox_arguments.deepspeed_args import NeoXArgsDeepspeedConfig
from megatron.neox_arguments.deepspeed_values import (
    BF16,
    FP16,
    SERVICES,
    ZERO,
    service_problems,
    value_problems,
)
from megatron.neox_arguments.suggestions import unknown_key

# Sent whatever their value: DeepSpeed's own defaults differ or have differed between versions.
ALWAYS_SENT = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "steps_per_print",
    "zero_optimization",
)
# Read by this program, not by DeepSpeed.
OWN_KEYS = ("deepspeed", "fp32_allreduce", "curriculum_learning", "curriculum_seqlen", "deepspeed_extra_args")
# Fields that mean nothing here and may as well stand among the extra keys.
PASSED_ON = ("dump_state", *SERVICES)
# Top-level keys that mainline DeepSpeed 0.19 refuses.
REMOVED = (
    "amp",
    "compression_training",
    "curriculum_learning",
    "eigenvalue",
    "elasticity",
    "graph_harvesting",
    "nebula",
    "progressive_layer_drop",
    "quantize_training",
    "sparse_attention",
    "sparse_gradients",
)
# Top-level keys of DeepSpeed 0.19 that have no field of their own here.
EXTRA = (
    "aio",
    "compile",
    "dataloader_drop_last",
    "disable_allgather",
    "disable_python_gc",
    "gradient_allreduce_op",
    "log_level",
    "managed_gradient_accumulation",
    "memory_breakdown",
    "pipeline",
    "seq_parallel_communication_data_type",
    "timers",
    "torch_autocast",
    "vocabulary_size",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)
FP16_KEYS, BF16_KEYS, ZERO_KEYS = tuple(FP16), tuple(BF16), tuple(ZERO)
# Of the fp16 dictionary, in DeepSpeed's eyes; bfloat16 has fp32's range and needs no loss scale.
_LOSS_SCALING = ("loss_scale", "loss_scale_window", "initial_scale_power", "hysteresis", "min_loss_scale")
# Keys of DeepSpeed's early days -> what they became.
_OLD_OFFLOAD = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}
_OLD_PINNING = "cpu_offload_use_pin_memory"
_OFFLOAD_KEYS = ("device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu", "ratio")
# Optimizers that work on what lies in host memory.
_OFFLOADED = ("adam", "adamw", "cpu_adam", "cpu_torch_adam", "sgd")


def build(args: Any) -> dict[str, Any]:
    """The dictionary handed to deepspeed.initialize."""
    config = {}
    for declared in fields(NeoXArgsDeepspeedConfig):
        key, value = declared.name, getattr(args, declared.name)
        if key not in OWN_KEYS and value is not None and (key in ALWAYS_SENT or value != declared.default):
            config[key] = value
    _only_known(config, "fp16", FP16_KEYS)
    _only_known(config, "bf16", BF16_KEYS)
    config["zero_optimization"] = zero_options(config["zero_optimization"])
    if "offload_optimizer" in config["zero_optimization"]:
        # The optimizer here is torch's, as fast on a CPU as the one that DeepSpeed would insist on and compile.
        config["zero_force_ds_cpu_optimizer"] = False
    if args.precision == "bfloat16":
        # Micro-batch gradients summed in bfloat16 lose small contributions.
        config["data_types"] = {"grad_accum_dtype": "fp32", **(args.data_types or {})}
    return {**config, **(args.deepspeed_extra_args or {})}


def zero_options(zero: dict[str, Any]) -> dict[str, Any]:
    """A checked `zero_optimization` in today's keys; where nothing is offloaded, the offload keys are left out."""
    old = (*_OLD_OFFLOAD, _OLD_PINNING)
    options = {key: value for key, value in zero.items() if key not in old}
    for key, today in _OLD_OFFLOAD.items():
        if zero.get(key):
            options[today] = {"device": "cpu", "pin_memory": bool(zero.get(_OLD_PINNING))}
    for key in ("offload_optimizer", "offload_param"):
        if (options.get(key) or {"device": "none"}).get("device", "none") == "none":
            options.pop(key, None)
    return options


def notes(args: Any) -> Iterator[str]:
    """One line for each old key that is translated or dropped."""
    dropped = [key for key in ("fp16", "type") if key in (args.fp16 or {})]
    if dropped:
        yield f"fp16: DeepSpeed no longer takes {', '.join(dropped)}; dropped, as enabled says it all"
    dropped = [key for key in ("bf16", "type") if key in (args.bf16 or {})]
    if dropped:
        yield f"bf16: DeepSpeed no longer takes {', '.join(dropped)}; dropped, as enabled says it all"
    dropped = [key for key in _LOSS_SCALING if key in (args.bf16 or {})]
    if dropped:
        yield f"bf16: {', '.join(dropped)} dropped; bfloat16 needs no loss scale"
    for key in (*_OLD_OFFLOAD, _OLD_PINNING):
        if key in args.zero_optimization and not args.zero_optimization[key]:
            yield f"zero_optimization: the outdated key {key}: false is dropped"
        elif key in args.zero_optimization and key in _OLD_OFFLOAD:
            yield f"zero_optimization: the outdated key {key} is taken for {_OLD_OFFLOAD[key]}: {{device: cpu}}"


def problems(args: Any) -> Iterator[str]:
    """What DeepSpeed would refuse, or take silently in another sense than meant."""
    yield from value_problems(args)
    yield from _precision_problems(args)
    yield from _zero_problems(args.zero_optimization)
    yield from _offload_problems(args)
    yield from _extra_problems(args)
    yield from _averaging_problems(args)
    yield from service_problems(args)
    if args.communication_data_type not in (None, "fp16", "bf16", "fp32"):
        yield f"communication_data_type={args.communication_data_type!r} must be fp16, bf16 or fp32"


def _precision_problems(args: Any) -> Iterator[str]:
    half, brain = args.fp16 or {}, args.bf16 or {}
    for key in half:
        if key not in (*FP16_KEYS, "fp16", "type"):
            yield f"fp16: {unknown_key(key, FP16_KEYS)}"
    for key in brain:
        if key not in (*BF16_KEYS, *_LOSS_SCALING, "bf16", "type"):
            yield f"bf16: {unknown_key(key, BF16_KEYS)}"
    for key, options, own in (("fp16", half, "fp16"), ("bf16", brain, "bfloat16")):
        meant = options.get("type", own)
        if meant != own:
            yield f"{key}.type={meant!r} contradicts the name of the mapping; remove it and set precision: {meant}"
    if half.get("enabled") and not half.get("loss_scale"):
        for key in ("loss_scale_window", "min_loss_scale"):
            value = half.get(key, 1)
            if isinstance(value, (int, float)) and value <= 0:
                yield f"fp16.{key}={value!r} must be above 0 when the loss scale adapts itself (fp16.loss_scale: 0)"


def _zero_problems(zero: dict[str, Any]) -> Iterator[str]:
    for key in zero:
        if key not in ZERO_KEYS and key not in (*_OLD_OFFLOAD, _OLD_PINNING):
            yield f"zero_optimization: {unknown_key(key, ZERO_KEYS)}"


def _offload_problems(args: Any) -> Iterator[str]:
    zero, wrong = args.zero_optimization, False
    for old, today in _OLD_OFFLOAD.items():
        value = zero.get(today)
        if zero.get(old) and value:
            yield f"zero_optimization: {old} and {today} mean the same; keep {today}"
        for problem in [] if value is None else _destination_problems(today, value):
            wrong = True
            yield problem
    if wrong:
        return
    options, stage = zero_options(zero), zero.get("stage")
    if "offload_optimizer" in options and stage == 0:
        yield "zero_optimization.offload_optimizer needs stage 1, 2 or 3: without ZeRO nothing is moved"
    if "offload_param" in options and stage != 3:
        yield f"zero_optimization.offload_param needs stage 3, not {stage}: only then are parameters moved"
    if (
        "offload_optimizer" in options
        and args.optimizer is not None
        and args.optimizer_type not in _OFFLOADED
    ):
        yield (
            f"zero_optimization.offload_optimizer with optimizer.type={args.optimizer_type}: what can work in host "
            f"memory is {', '.join(_OFFLOADED)}"
        )


def _destination_problems(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"zero_optimization.{key}={value!r} must be a mapping such as {{device: cpu}}"
        return
    if value.get("device", "none") not in ("cpu", "none"):
        yield (
            f"zero_optimization.{key}.device={value['device']!r} must be cpu or none; there is no check here of the "
            "library and the disks that nvme needs"
        )
        return
    for option in value:
        if option not in _OFFLOAD_KEYS:
            yield f"zero_optimization.{key}: {unknown_key(option, _OFFLOAD_KEYS)}"


def _extra_problems(args: Any) -> Iterator[str]:
    declared = {field.name: field for field in fields(NeoXArgsDeepspeedConfig)}
    for key in args.deepspeed_extra_args or {}:
        if key in REMOVED:
            yield f"deepspeed_extra_args: DeepSpeed no longer has {key!r}; remove it"
        elif key in declared and (key not in PASSED_ON or getattr(args, key) != declared[key].default):
            yield f"deepspeed_extra_args: {key!r} is a key of its own; set it at the top level"
        elif key not in declared and key not in EXTRA:
            yield f"deepspeed_extra_args: {unknown_key(key, (*declared, *EXTRA))}"


def _averaging_problems(args: Any) -> Iterator[str]:
    """ZeRO, with which 16-bit runs train in any case, divides in its own way where it scatters sums."""
    zero = args.zero_optimization
    if (zero.get("stage") or args.precision != "fp32") and zero.get("reduce_scatter", True):
        for key, default in (("gradient_predivide_factor", 1.0), ("prescale_gradients", False)):
            if (value := getattr(args, key)) != default:
                yield f"{key}={value} needs zero_optimization.reduce_scatter: false in 16 bit and with ZeRO"


def _only_known(config: dict[str, Any], key: str, known: tuple[str, ...]) -> None:
    if key in config:
        config[key] = {name: value for name, value in config[key].items() if name in known}

"""The keys inside the mappings that are handed to DeepSpeed, and what their values are.

DeepSpeed complains about a wrong value at length, and only once the processes run."""

from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.suggestions import unknown_key
from megatron.neox_arguments.types import Mismatch, conform, describe

FP16: dict[str, Any] = {
    "enabled": bool,
    "auto_cast": bool,
    "loss_scale": float,
    "initial_scale_power": int,
    "loss_scale_window": int,
    "hysteresis": int,
    "consecutive_hysteresis": bool,
    "min_loss_scale": float,
    "fp16_master_weights_and_grads": bool,
}
BF16: dict[str, Any] = {
    "enabled": bool,
    "immediate_grad_update": bool,
    "check_grad_overflow": bool,
    "bf16_master_weights_and_grads": bool,
    "bf16_optimizer_states": bool,
}
# Any: checked apart (the stage, the buckets, where things are moved), or a mapping of its own.
ZERO: dict[str, Any] = {
    "stage": Any,
    "allgather_bucket_size": Any,
    "allgather_partitions": bool,
    "compute_grad_norm": bool,
    "contiguous_gradients": bool,
    "cpu_offload": bool,
    "elastic_checkpoint": bool,
    "enable_sanity_checks": bool,
    "ignore_unused_parameters": bool,
    "leaf_module": Any,
    "legacy_stage1": bool,
    "load_from_fp32_weights": bool,
    "log_trace_cache_warnings": bool,
    "memory_efficient_linear": bool,
    "offload_optimizer": Any,
    "offload_param": Any,
    "overlap_comm": bool,
    "override_module_apply": bool,
    "parameter_alignment": int,
    "pipeline_loading_checkpoint": bool,
    "reduce_bucket_size": Any,
    "reduce_scatter": bool,
    "round_robin_gradients": bool,
    "stage3_allgather_sequential": bool,
    "stage3_gather_16bit_weights_on_model_save": bool,
    "stage3_gather_fp16_weights_on_model_save": bool,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_model_persistence_threshold": int,
    "stage3_module_granularity_threshold": int,
    "stage3_param_persistence_threshold": int,
    "stage3_prefetch_bucket_size": Any,
    "stage3_use_all_reduce_for_fetch_params": bool,
    "sub_group_size": int,
    "use_multi_rank_bucket_allreduce": bool,
    "zero_hpz_partition_size": int,
    "zero_quantized_gradients": bool,
    "zero_quantized_nontrainable_weights": bool,
    "zero_quantized_weights": bool,
}
_FILES: dict[str, Any] = {"enabled": bool, "output_path": str, "job_name": str}
# What DeepSpeed does beside training.
SERVICES: dict[str, dict[str, Any]] = {
    "flops_profiler": {
        "enabled": bool,
        "recompute_fwd_factor": float,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str | None,
    },
    "comms_logger": {"enabled": bool, "prof_all": bool, "prof_ops": list, "verbose": bool, "debug": bool},
    "tensorboard": _FILES,
    "csv_monitor": _FILES,
    "wandb": {"enabled": bool, "group": str | None, "team": str | None, "project": str},
    "checkpoint": {
        "checkpoint_serialization": bool,
        "load_universal": bool,
        "parallel_write": dict,
        "tag_validation": str,
        "use_node_local_storage": bool,
        "writer": dict,
    },
}
_LEAST = {"loss_scale": 0, "hysteresis": 1}
_FORMATS = ("fp32", "float32", "fp16", "float16", "bf16", "bfloat16")


def value_problems(args: Any) -> Iterator[str]:
    """One line for each value of fp16, bf16, zero_optimization and data_types that is of the wrong kind."""
    for name, kinds in (("fp16", FP16), ("bf16", BF16), ("zero_optimization", ZERO)):
        for key, value in (getattr(args, name) or {}).items():
            if problem := _problem(key, value, kinds.get(key, Any)):
                yield f"{name}.{key}={value!r} must be {problem}"
    for key, value in (args.data_types or {}).items():
        if key != "grad_accum_dtype":
            yield f"data_types: {unknown_key(key, ('grad_accum_dtype',))}"
        elif value not in _FORMATS:
            yield f"data_types.grad_accum_dtype={value!r} must be fp32, fp16 or bf16"


def service_problems(args: Any) -> Iterator[str]:
    """The same for the mappings of SERVICES, which may stand among the extra keys."""
    extra = args.deepspeed_extra_args or {}
    for name, kinds in SERVICES.items():
        for place, options in (
            (name, getattr(args, name)),
            (f"deepspeed_extra_args.{name}", extra.get(name)),
        ):
            if options is not None and not isinstance(options, dict):
                yield f"{place}={options!r} must be a mapping of {', '.join(kinds)}"
            elif options is not None:
                yield from _service_problems(place, options, kinds)


def _service_problems(place: str, options: dict[str, Any], kinds: dict[str, Any]) -> Iterator[str]:
    if "enabled" in kinds and not isinstance(options.get("enabled"), bool):
        yield f"{place} must contain enabled: true or enabled: false"
    for key, value in options.items():
        if key not in kinds:
            yield f"{place}: {unknown_key(str(key), kinds)}"
        elif key != "enabled" and (problem := _problem(key, value, kinds[key])):
            yield f"{place}.{key}={value!r} must be {problem}"


def _problem(key: str, value: Any, kind: Any) -> str | None:
    try:
        conform(value, kind)
    except Mismatch:
        return describe(kind)
    return f"at least {_LEAST[key]}" if key in _LEAST and value < _LEAST[key] else None

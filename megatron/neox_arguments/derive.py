"""Values that follow from other values. Runs before the rules, in the order of the functions."""

import math
from collections.abc import Iterator
from typing import Any

from megatron.common.device import accelerator_count
from megatron.common.errors import ConfigError
from megatron.common.hosts import resource_pool
from megatron.neox_arguments.attention_types import expand_attention_types
from megatron.neox_arguments.batch import calculate_batch_parameters, check_batch_parameters, check_divisible
from megatron.neox_arguments.environment import job_size
from megatron.neox_arguments.git import get_git_commit_hash
from megatron.neox_arguments.steps import Steps

ZERO_DEFAULTS = {
    "stage": 0,
    "allgather_partitions": True,
    "reduce_scatter": True,
    "allgather_bucket_size": int(5e8),
    "overlap_comm": False,
    "reduce_bucket_size": int(5e8),
    "contiguous_gradients": False,
}
OPT_DEFAULT = "Adam"
OPT_PARAMS_DEFAULTS = {
    "lr": 0.001,
    "betas": [0.9, 0.999],
    "eps": 1.0e-8,
    "weight_decay": 0,
    "freeze_step": 400,
    "momentum": 0.0,
    "cuda_aware": False,
}
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
DERIVATIONS = Steps()
derives = DERIVATIONS.reading


@derives("launcher", "deepspeed_mpi", "deepspeed_slurm", "force_multi", writes=("launcher", "force_multi"))
def _launcher(args: Any) -> None:
    args.force_multi = args.force_multi or args.deepspeed_mpi or args.deepspeed_slurm
    if args.deepspeed_slurm and args.launcher == "pdsh":
        args.launcher = "slurm"


@derives(
    *("hostfile", "include", "exclude", "num_nodes", "num_gpus", "global_num_gpus", "launcher"),
    writes=("global_num_gpus",),
)
def _process_count(args: Any) -> None:
    for key in ("global_num_gpus", "num_gpus"):
        if getattr(args, key) is not None and getattr(args, key) < 1:
            raise ConfigError(f"{key}={getattr(args, key)} must be above 0")
    if args.global_num_gpus is not None:
        return
    args.global_num_gpus = job_size()
    if args.global_num_gpus is not None:
        return
    hosts = resource_pool(
        args.hostfile, args.include, args.exclude, args.num_nodes, args.num_gpus, args.launcher
    )
    if hosts:
        args.global_num_gpus = sum(len(slots) for slots in hosts.values())
    else:
        args.global_num_gpus = args.num_gpus or accelerator_count() or 1


def assume_devices(values: dict[str, Any]) -> dict[str, Any]:
    """For planning only: where the configuration does not say how many devices there are and this machine has too few,
    assume the fewest that its grid of processes can do with."""
    grid = 1
    for key in ("pipe_parallel_size", "model_parallel_size"):
        size = values.get(key, 1)
        grid *= max(1, size) if isinstance(size, int) else 1
    if any(values.get(key) is not None for key in ("global_num_gpus", "hostfile", "include", "num_gpus")):
        return values
    return values if (accelerator_count() or 1) % grid == 0 else {**values, "global_num_gpus": grid}


@derives("model_parallel_size", "pipe_parallel_size", writes=("model_parallel_size", "is_pipe_parallel"))
def _parallelism(args: Any) -> Iterator[str]:
    args.model_parallel_size = max(1, args.model_parallel_size)
    args.is_pipe_parallel = args.pipe_parallel_size >= 1
    if args.pipe_parallel_size < 0:
        yield f"pipe_parallel_size={args.pipe_parallel_size} must not be negative"


@derives(
    "global_num_gpus",
    "model_parallel_size",
    "pipe_parallel_size",
    *BATCH_KEYS,
    writes=("batch_size", *BATCH_KEYS),
)
def _batch(args: Any) -> None:
    processes, grid = args.global_num_gpus, max(1, args.pipe_parallel_size) * args.model_parallel_size
    if processes % grid or processes < grid:
        raise ConfigError(
            f"the job has {processes} process{'es' if processes != 1 else ''}, which is not a multiple of "
            f"pipe_parallel_size={args.pipe_parallel_size} x model_parallel_size={args.model_parallel_size}; change "
            f"the sizes, or the number of devices (num_gpus, hostfile, global_num_gpus)"
        )
    given = [getattr(args, key) for key in BATCH_KEYS]
    check_divisible(processes // grid, *given)
    triple = calculate_batch_parameters(processes // grid, *given)
    check_batch_parameters(processes // grid, *triple)
    for key, value in zip(BATCH_KEYS, triple, strict=True):
        setattr(args, key, value)
    args.batch_size = args.train_micro_batch_size_per_gpu


@derives("precision", "fp16", "bf16", writes=("precision", "fp16", "bf16", "dynamic_loss_scale"))
def _precision(args: Any) -> None:
    for key in ("fp16", "bf16"):
        options = getattr(args, key)
        if options is not None and not isinstance(options.get("enabled"), bool):
            raise ConfigError(f"{key} must contain enabled: true or enabled: false")
    half, brain = bool(args.fp16 and args.fp16["enabled"]), bool(args.bf16 and args.bf16["enabled"])
    if half and brain:
        raise ConfigError("fp16.enabled and bf16.enabled are both true; enable one of them")
    found = "fp16" if half else "bfloat16" if brain else None
    if found and args.precision not in (None, found):
        key = "fp16" if half else "bf16"
        raise ConfigError(f"precision={args.precision} contradicts {key}.enabled: true; change one of them")
    args.precision = args.precision or found or "fp32"
    if args.precision == "fp16":
        args.fp16 = {**(args.fp16 or {}), "enabled": True}
    if args.precision == "bfloat16":
        args.bf16 = {**(args.bf16 or {}), "enabled": True}
    args.dynamic_loss_scale = args.precision == "fp16" and not args.fp16.get("loss_scale")


ZERO_MIRRORS = {
    "zero_stage": "stage",
    "zero_reduce_scatter": "reduce_scatter",
    "zero_contiguous_gradients": "contiguous_gradients",
    "zero_reduce_bucket_size": "reduce_bucket_size",
    "zero_allgather_bucket_size": "allgather_bucket_size",
}


@derives("zero_optimization", writes=("zero_optimization", *ZERO_MIRRORS))
def _zero(args: Any) -> None:
    if args.zero_optimization is None:
        args.zero_optimization = dict(ZERO_DEFAULTS)
    stage = args.zero_optimization.get("stage")
    if type(stage) is not int or not 0 <= stage <= 3:
        given = f"not {stage!r}" if "stage" in args.zero_optimization else "and is missing"
        raise ConfigError(f"zero_optimization.stage must be 0, 1, 2 or 3, {given}")
    for key, value in args.zero_optimization.items():
        if key.endswith("bucket_size") and not (type(value) in (int, float) and 1 <= value < math.inf):
            raise ConfigError(f"zero_optimization.{key}={value!r} must be a number of at least 1")
    for mirror, key in ZERO_MIRRORS.items():
        value = args.zero_optimization.get(key, ZERO_DEFAULTS[key])
        setattr(args, mirror, int(value) if key.endswith("bucket_size") else value)


@derives("optimizer", writes=("optimizer_type", "lr"))
def _optimizer(args: Any) -> None:
    kind = args.optimizer.get("type") if args.optimizer is not None else OPT_DEFAULT
    params = args.optimizer.get("params") if args.optimizer is not None else OPT_PARAMS_DEFAULTS
    if not isinstance(kind, str) or not isinstance(params, dict):
        raise ConfigError("optimizer must be a mapping of type (text) and params (a mapping)")
    args.optimizer_type = kind.lower()
    args.lr = params.get("lr", OPT_PARAMS_DEFAULTS["lr"])
    if type(args.lr) not in (int, float):
        raise ConfigError(f"optimizer.params.lr={args.lr!r} must be a number")
    args.lr = float(args.lr)


@derives("gradient_clipping", writes=("clip_grad",))
def _clipping(args: Any) -> None:
    args.clip_grad = args.gradient_clipping


@derives("seq_length", "max_position_embeddings", writes=("seq_length",))
def _sequence_length(args: Any) -> None:
    args.seq_length = args.seq_length if args.seq_length is not None else args.max_position_embeddings


@derives("attention_config", "num_layers", writes=("attention_config",))
def _attention(args: Any) -> None:
    if args.num_layers is not None and args.num_layers > 0:
        config = (
            args.attention_config if args.attention_config is not None else [[["global"], args.num_layers]]
        )
        args.attention_config = expand_attention_types(config, args.num_layers)


@derives(
    "attention_config",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "expansion_factor",
    "dim_att",
    writes=("dim_att", "head_size", "ffn_dim"),
)
def _rwkv(args: Any) -> Iterator[str]:
    if "rwkv" not in (args.attention_config or []):
        if args.dim_att is not None:
            yield f"dim_att={args.dim_att} is the width of rwkv layers, and attention_config has none; remove it"
        return
    if not args.hidden_size or not args.num_attention_heads:
        return
    args.dim_att = args.dim_att or args.hidden_size
    if args.dim_att % args.num_attention_heads:
        yield f"dim_att={args.dim_att} must be a multiple of num_attention_heads={args.num_attention_heads}"
    args.head_size = args.dim_att // args.num_attention_heads
    width = args.intermediate_size or int((args.expansion_factor or 3.5) * args.hidden_size)
    # Whole blocks of features, as the published models have.
    args.ffn_dim = width // 32 * 32
    if args.ffn_dim < 1 or args.ffn_dim % args.model_parallel_size:
        yield (
            f"the feed-forward width {width} of rwkv layers, cut to {args.ffn_dim}, must be a multiple of 32 and of "
            f"model_parallel_size={args.model_parallel_size}"
        )


@derives("train_data_paths", "train_data_weights", writes=("train_data_weights",))
def _train_weights(args: Any) -> None:
    _equal_weights(args, "train")


@derives("valid_data_paths", "valid_data_weights", writes=("valid_data_weights",))
def _valid_weights(args: Any) -> None:
    _equal_weights(args, "valid")


@derives("test_data_paths", "test_data_weights", writes=("test_data_weights",))
def _test_weights(args: Any) -> None:
    _equal_weights(args, "test")


def _equal_weights(args: Any, part: str) -> None:
    paths = getattr(args, f"{part}_data_paths")
    if paths and getattr(args, f"{part}_data_weights") is None:
        setattr(args, f"{part}_data_weights", [1.0] * len(paths))


@derives("text_gen_type", "sample_input_file", writes=("text_gen_type",))
def _text_generation(args: Any) -> None:
    if args.text_gen_type is None:
        args.text_gen_type = "input-file" if args.sample_input_file else "unconditional"


@derives(writes=("git_hash",))
def _provenance(args: Any) -> None:
    if args.git_hash is None:
        args.git_hash = get_git_commit_hash()

"""What must hold between the values of a configuration. Each rule names the keys it reads and yields its complaints."""

import math
from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments import (
    block_sizes,
    curriculum,
    deepspeed_view,
    experts,
    launch_options,
    mlp_sizes,
    pipeline_options,
    profiling,
    restart_options,
    rope_scaling,
    schedule_options,
    serving,
)
from megatron.neox_arguments.attention_sizes import head_problems, head_size
from megatron.neox_arguments.evaluation_options import EVALUATION_KEYS, evaluation_problems
from megatron.neox_arguments.mup_options import MUP_KEYS, mup_problems
from megatron.neox_arguments.neox_args import ATTENTION_TYPE_CHOICES
from megatron.neox_arguments.optimizer_options import check_optimizer
from megatron.neox_arguments.soft_prompt import soft_prompt_problems
from megatron.neox_arguments.sparsity import sparsity_problems
from megatron.neox_arguments.steps import Steps
from megatron.neox_arguments.suggestions import nearest

RULES = Steps()
rule = RULES.reading

REQUIRED = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
POSITIVE = (
    *REQUIRED,
    "seq_length",
    "num_kv_heads",
    "sliding_window_width",
    "head_dim",
    "attention_softmax_scale",
    "gmlp_attn_dim",
    "intermediate_size",
    "expansion_factor",
    "ffn_hidden_size",
    "embedding_size",
    "mlp_multiple_of",
    "make_vocab_size_divisible_by",
    "rotary_emb_base",
    "seed",
    "train_iters",
    "train_epochs",
    "log_interval",
    "exit_interval",
    "lr_decay_iters",
    "lr_decay_fraction",
    "keep_last_n_checkpoints",
    "checkpoint_num_layers",
    "global_num_gpus",
    "num_gpus",
    "gradient_predivide_factor",
    "steps_per_print",
    "peak_theoretical_tflops",
    "layernorm_epsilon",
    "rms_norm_epsilon",
    "scalenorm_epsilon",
    "init_method_std",
    "online_dataserver_timeout",
)
NOT_NEGATIVE = (
    # 0 evaluates never, or only at the end.
    "eval_iters",
    "eval_interval",
    "num_workers",
    "gradient_clipping",
    "weight_decay",
    "min_lr",
    "z_loss",
    "temperature",
    "top_k",
    "maximum_tokens",
    "num_samples",
    "iteration",
    "watchdog_timeout",
    "max_restarts",
)
PROBABILITIES = ("attention_dropout", "hidden_dropout", "top_p", "rotary_pct", "warmup")


@rule()
def _ranges(args: Any) -> Iterator[str]:
    for key in POSITIVE:
        value = getattr(args, key)
        if isinstance(value, (int, float)) and value <= 0:
            yield f"{key}={value} must be above 0"
    for key in NOT_NEGATIVE:
        value = getattr(args, key)
        if isinstance(value, (int, float)) and value < 0:
            yield f"{key}={value} must not be negative"
    for key in PROBABILITIES:
        value = getattr(args, key)
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            yield f"{key}={value} must lie between 0 and 1"


def _must_be_set(key: str) -> None:
    @rule(key)
    def _is_set(args: Any) -> Iterator[str]:
        if getattr(args, key) is None:
            yield f"{key} must be set"


for _key in REQUIRED:
    _must_be_set(_key)


@rule(
    "attention_config",
    "hidden_size",
    "num_attention_heads",
    "num_kv_heads",
    "head_dim",
    "model_parallel_size",
)
def _heads(args: Any) -> Iterator[str]:
    if block_sizes.has_heads(args):
        yield from head_problems(args)


@rule(
    "attention_config",
    "hidden_size",
    "intermediate_size",
    "expansion_factor",
    "model_parallel_size",
    "mamba_inner_func_fusion",
    "mamba_use_bias_in_linears",
    "num_attention_heads",
    *block_sizes.ATTENTION_KEYS,
)
def _blocks(args: Any) -> Iterator[str]:
    yield from block_sizes.problems(args)


@rule(
    "hidden_size",
    "intermediate_size",
    "expansion_factor",
    "ffn_hidden_size",
    "mlp_multiple_of",
    "activation",
    "attention_config",
    "moe_num_experts",
    "moe_expert_interval",
    "model_parallel_size",
)
def _mlp(args: Any) -> Iterator[str]:
    yield from mlp_sizes.problems(args)


@rule("pos_emb", "opt_pos_emb_offset", "seq_length", "max_position_embeddings")
def _learned_positions(args: Any) -> Iterator[str]:
    offset, rows, length = args.opt_pos_emb_offset, args.max_position_embeddings, args.seq_length
    if offset and args.pos_emb != "learned":
        yield f"opt_pos_emb_offset={offset} moves the ids of pos_emb: learned, not of {args.pos_emb}; remove it"
    elif offset < 0:
        yield f"opt_pos_emb_offset={offset} must not be negative"
    elif offset and rows and length and length + offset > rows:
        yield (
            f"opt_pos_emb_offset={offset} and seq_length={length} need a table of {length + offset} positions; raise "
            f"max_position_embeddings={rows}"
        )


@rule("pos_emb", "rpe_num_buckets", "rpe_max_distance")
def _relative_positions(args: Any) -> Iterator[str]:
    buckets, distance = args.rpe_num_buckets, args.rpe_max_distance
    if args.pos_emb == "rpe" and (buckets < 2 or distance <= buckets // 2):
        yield (
            f"rpe_max_distance={distance} must exceed half of rpe_num_buckets={buckets}, which must be at least 2: the "
            "first half of the buckets holds one distance each"
        )


@rule("pos_emb", "hidden_size")
def _sinusoidal(args: Any) -> Iterator[str]:
    if args.pos_emb == "sinusoidal" and args.hidden_size and args.hidden_size % 2:
        yield f"pos_emb: sinusoidal needs an even hidden_size, not {args.hidden_size}"


@rule("pos_emb", "rotary_emb_base")
def _wavelengths(args: Any) -> Iterator[str]:
    if args.pos_emb == "rotary" and args.rotary_emb_base == 1:
        yield "rotary_emb_base=1 gives all features of pos_emb: rotary one wavelength; it must be above 1"


@rule("rotary_pct", "pos_emb", "hidden_size", "num_attention_heads", "head_dim")
def _rotary(args: Any) -> Iterator[str]:
    if args.pos_emb != "rotary" or not args.hidden_size or not args.num_attention_heads:
        return
    if not block_sizes.has_mlp(args):
        return
    if args.head_dim is None and args.hidden_size % args.num_attention_heads:
        return
    head = head_size(args)
    turned = int(head * args.rotary_pct)
    if turned < 2 or turned % 2:
        yield (
            f"rotary_pct={args.rotary_pct} turns {turned} of the {head} dimensions of a head; it must be an even "
            f"number of at least 2"
        )


@rule(
    "rope_scaling",
    "pos_emb",
    "rotary_pct",
    "max_position_embeddings",
    "hidden_size",
    "num_attention_heads",
    "head_dim",
)
def _rope_scaling(args: Any) -> Iterator[str]:
    yield from rope_scaling.problems(args)


@rule("max_position_embeddings", "seq_length")
def _lengths(args: Any) -> Iterator[str]:
    longest, length = args.max_position_embeddings, args.seq_length
    if longest is not None and length is not None and longest < length:
        yield f"max_position_embeddings={longest} must be at least seq_length={length}"


@rule("seq_length", "sequence_parallel", "model_parallel_size")
def _sequence_parallel(args: Any) -> Iterator[str]:
    if args.sequence_parallel and args.seq_length and args.seq_length % args.model_parallel_size:
        yield (
            f"sequence_parallel needs seq_length={args.seq_length} to be a multiple of "
            f"model_parallel_size={args.model_parallel_size}"
        )


@rule("curriculum_learning", "seq_length", "sequence_parallel", "model_parallel_size")
def _curriculum(args: Any) -> Iterator[str]:
    if args.seq_length:
        yield from curriculum.problems(args)


@rule("soft_prompt_tuning", "seq_length", "isolate_documents", "curriculum_learning")
def _soft_prompt(args: Any) -> Iterator[str]:
    yield from soft_prompt_problems(args)


@rule("num_unique_layers", "num_layers", "checkpoint_activations", "zero_stage")
def _shared_layers(args: Any) -> Iterator[str]:
    unique, layers = args.num_unique_layers, args.num_layers
    if unique is None:
        return
    if layers and (unique < 1 or layers % unique):
        yield f"num_unique_layers={unique} must be at least 1 and divide num_layers={layers}"
    elif unique != layers and args.checkpoint_activations and args.zero_stage >= 2:
        yield (
            f"num_unique_layers={unique} with checkpoint_activations needs zero_optimization.stage 0 or 1, not "
            f"{args.zero_stage}: each recomputed use of a block brings a gradient of its own, and DeepSpeed takes one"
        )


@rule("log_gradient_noise_scale", "log_grad_norm", "log_grad_pct_zeros", "optimizer_type")
def _averaged_gradients(args: Any) -> Iterator[str]:
    for key in ("log_gradient_noise_scale", "log_grad_norm", "log_grad_pct_zeros"):
        if getattr(args, key) and args.optimizer is not None and args.optimizer_type == "onebitadam":
            yield f"{key} needs gradients that are averaged over replicas, and optimizer.type onebitadam does without"


@rule("gradient_noise_scale_n_batches")
def _noise_scale(args: Any) -> Iterator[str]:
    if args.gradient_noise_scale_n_batches < 2:
        yield (
            f"gradient_noise_scale_n_batches={args.gradient_noise_scale_n_batches} must be at least 2, since the "
            "gradients of one batch and of several are compared"
        )


@rule("attention_config")
def _attention_kinds(args: Any) -> Iterator[str]:
    for kind in sorted({str(kind) for kind in args.attention_config or []}):
        if kind not in ATTENTION_TYPE_CHOICES:
            close = nearest(kind, ATTENTION_TYPE_CHOICES)
            hint = f"; did you mean {close!r}?" if close else ""
            yield f"attention_config: unknown kind {kind!r}: choose among {', '.join(ATTENTION_TYPE_CHOICES)}{hint}"


@rule("sparsity_config", "attention_config")
def _sparsity(args: Any) -> Iterator[str]:
    yield from sparsity_problems(args.sparsity_config, [str(kind) for kind in args.attention_config or []])


@rule("qk_layernorm_per_head", "use_qk_layernorm", "norm")
def _norm_of_each_head(args: Any) -> Iterator[str]:
    if args.qk_layernorm_per_head and not args.use_qk_layernorm:
        yield "qk_layernorm_per_head is the form of a norm that is not there; set use_qk_layernorm: true"
    elif args.qk_layernorm_per_head and args.norm != "layernorm":
        yield f"qk_layernorm_per_head is there for norm: layernorm only, not {args.norm}"


@rule("gpt_j_residual", "norm_placement")
def _norm_placement(args: Any) -> Iterator[str]:
    if args.gpt_j_residual and args.norm_placement == "post":
        yield (
            "norm_placement: post normalises what each branch gives before the next one takes it; it needs "
            "gpt_j_residual: false"
        )


@rule("use_bias_in_output", "no_weight_tying")
def _output_bias(args: Any) -> Iterator[str]:
    if args.use_bias_in_output and not args.no_weight_tying:
        yield "use_bias_in_output: an output layer tied to the word embeddings has no bias; set no_weight_tying: true"


@rule("gpt_j_residual", "gpt_j_tied")
def _residual(args: Any) -> Iterator[str]:
    if args.gpt_j_tied and not args.gpt_j_residual:
        yield "gpt_j_tied shares the norm of two parallel branches; it needs gpt_j_residual: true"


@rule("optimizer", "optimizer_type", "lr")
def _optimizer(args: Any) -> Iterator[str]:
    yield from check_optimizer(args.optimizer)


@rule("lr", "min_lr")
def _learning_rate(args: Any) -> Iterator[str]:
    if args.min_lr > args.lr >= 0:
        yield f"min_lr={args.min_lr} exceeds the learning rate optimizer.params.lr={args.lr}"


@rule("override_lr_scheduler", "use_checkpoint_lr_scheduler")
def _schedule_source(args: Any) -> Iterator[str]:
    if args.override_lr_scheduler and args.use_checkpoint_lr_scheduler:
        yield "override_lr_scheduler and use_checkpoint_lr_scheduler contradict each other; set one"


@rule("use_bnb_optimizer", "optimizer_type")
def _eight_bit(args: Any) -> Iterator[str]:
    if args.use_bnb_optimizer and args.optimizer_type not in ("adam", "adamw"):
        yield f"use_bnb_optimizer gives Adam 8-bit states; it needs optimizer.type: adam, not {args.optimizer_type}"


@rule(
    "train_iters",
    "train_epochs",
    "pack_impl",
    "dataset_impl",
    "weight_by_num_documents",
    "train_data_weights",
)
def _epochs(args: Any) -> Iterator[str]:
    if args.train_epochs is None:
        return
    if args.train_iters is not None:
        yield f"train_iters={args.train_iters} and train_epochs={args.train_epochs} both set the length; keep one"
    if args.pack_impl != "packed":
        yield f"train_epochs needs pack_impl: packed, not {args.pack_impl}"
    if args.weight_by_num_documents or any(weight != 1 for weight in args.train_data_weights or []):
        yield "train_epochs needs equal weights: remove weight_by_num_documents and train_data_weights"


@rule("save", "checkpoint_factor", "extra_save_iters", "checkpoint_scale")
def _saving(args: Any) -> Iterator[str]:
    factor = args.checkpoint_factor
    if args.save is not None and factor is None and args.extra_save_iters is None:
        yield f"save={args.save!r} needs checkpoint_factor or extra_save_iters to say when"
    if factor is None:
        return
    if args.checkpoint_scale == "linear" and (factor < 1 or int(factor) != factor):
        yield f"checkpoint_factor={factor} must be a whole number of iterations with checkpoint_scale: linear"
    if args.checkpoint_scale == "log" and factor <= 1:
        yield f"checkpoint_factor={factor} must be above 1 with checkpoint_scale: log"


@rule("s3_path", "s3_chunk_size", "save")
def _uploading(args: Any) -> Iterator[str]:
    if args.s3_path is not None and not args.s3_path.startswith("s3://"):
        yield f"s3_path={args.s3_path!r} must be s3://BUCKET/PREFIX"
    if args.s3_path is not None and args.save is None:
        yield f"s3_path={args.s3_path!r} needs save: checkpoints are written there first"
    if args.s3_chunk_size < 5 << 20:
        yield f"s3_chunk_size={args.s3_chunk_size} must be at least {5 << 20}, the smallest part that S3 takes"


@rule("text_gen_type", "sample_input_file")
def _prompts(args: Any) -> Iterator[str]:
    if args.text_gen_type == "input-file" and not args.sample_input_file:
        yield "text_gen_type: input-file needs sample_input_file"


RULES.reading(*EVALUATION_KEYS)(evaluation_problems)


@rule("fp16_lm_cross_entropy", "precision")
def _half_precision_loss(args: Any) -> Iterator[str]:
    if args.fp16_lm_cross_entropy and args.precision != "fp16":
        yield f"fp16_lm_cross_entropy needs precision: fp16, not {args.precision}"


@rule("activation", "use_flashattn_swiglu")
def _swiglu_kernel(args: Any) -> Iterator[str]:
    if args.use_flashattn_swiglu and args.activation != "swiglu":
        yield f"use_flashattn_swiglu works on activation: swiglu only, not {args.activation}"


@rule("activation", "bias_gelu_fusion", "onnx_safe")
def _fused_gelu(args: Any) -> Iterator[str]:
    if args.onnx_safe and args.bias_gelu_fusion:
        yield "onnx_safe and bias_gelu_fusion write GELU in two different ways; keep one"
    if args.bias_gelu_fusion and args.activation != "gelu":
        yield f"bias_gelu_fusion works on activation: gelu only, not {args.activation}"


@rule(*(f"{part}_data_paths" for part in ("train", "valid", "test")), "data_path")
def _data_sources(args: Any) -> Iterator[str]:
    parts = [f"{part}_data_paths" for part in ("train", "valid", "test")]
    given = [key for key in parts if getattr(args, key)]
    missing = [key for key in parts if key not in given]
    if given and missing:
        yield f"{', '.join(given)} given, but {', '.join(missing)} missing; set all three"
    if given and args.data_path is not None:
        yield f"data_path={args.data_path!r} and {', '.join(given)} exclude each other; keep one kind"


def _companions(part: str) -> None:
    paths_key = f"{part}_data_paths"
    for companion in (f"{part}_label_data_paths", f"{part}_data_weights"):

        @rule(paths_key, companion)
        def _fits(args: Any, companion: str = companion) -> Iterator[str]:
            paths, values = getattr(args, paths_key), getattr(args, companion)
            if values is not None and len(values) != len(paths or []):
                yield f"{companion} has {len(values)} entries, but {paths_key} has {len(paths or [])}"
            if (
                companion.endswith("weights")
                and values is not None
                and (min(values, default=1) < 0 or not sum(values))
            ):
                yield f"{companion}={values} must not be negative, and not all 0"


for _part in ("train", "valid", "test"):
    _companions(_part)


@rule("split")
def _split(args: Any) -> Iterator[str]:
    try:
        shares = [float(share) for share in args.split.replace("/", ",").split(",")]
    except ValueError:
        yield f'split={args.split!r} must be up to three numbers, such as "969,30,1"'
        return
    if len(shares) > 3 or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        yield f'split={args.split!r} must be up to three shares of at least 0, such as "969,30,1"'


for _keys, _problems in (
    (experts.KEYS, experts.problems),
    (MUP_KEYS, mup_problems),
    (launch_options.FILTERS, launch_options.filter_problems),
    (launch_options.PORT, launch_options.port_problems),
    (launch_options.ARGUMENTS, launch_options.argument_problems),
    (pipeline_options.KEYS, pipeline_options.problems),
    (profiling.KEYS, profiling.problems),
    (restart_options.KEYS, restart_options.problems),
    (schedule_options.KEYS, schedule_options.problems),
    (serving.KEYS, serving.problems),
):
    rule(*_keys)(_problems)


@rule(
    "fp16",
    "bf16",
    "precision",
    "zero_optimization",
    "deepspeed_extra_args",
    "flops_profiler",
    "communication_data_type",
    "gradient_predivide_factor",
    "prescale_gradients",
)
def _deepspeed(args: Any) -> Iterator[str]:
    yield from deepspeed_view.problems(args)

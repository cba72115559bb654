"""Rules for the model: its widths, positions, blocks, norms and activations."""

from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments import block_sizes, experts, mlp_sizes, rope_scaling
from megatron.neox_arguments.attention_sizes import head_problems, head_size
from megatron.neox_arguments.neox_args import ATTENTION_TYPE_CHOICES
from megatron.neox_arguments.soft_prompt import soft_prompt_problems
from megatron.neox_arguments.sparsity import sparsity_problems
from megatron.neox_arguments.steps import Steps
from megatron.neox_arguments.suggestions import nearest

RULES = Steps()
rule = RULES.reading


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


@rule("max_position_embeddings", "seq_length")
def _lengths(args: Any) -> Iterator[str]:
    longest, length = args.max_position_embeddings, args.seq_length
    if longest is not None and length is not None and longest < length:
        yield f"max_position_embeddings={longest} must be at least seq_length={length}"


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


@rule("qk_layernorm_per_head", "norm")
def _norm_of_each_head(args: Any) -> Iterator[str]:
    if args.qk_layernorm_per_head and args.norm != "layernorm":
        yield f"qk_layernorm_per_head is there for norm: layernorm only, not {args.norm}"


@rule("gpt_j_residual", "norm_placement")
def _norm_placement(args: Any) -> Iterator[str]:
    if args.gpt_j_residual and args.norm_placement == "post":
        yield (
            "norm_placement: post normalises what each branch gives before the next one takes it; it needs "
            "gpt_j_residual: false"
        )


@rule("gpt_j_residual", "gpt_j_tied")
def _residual(args: Any) -> Iterator[str]:
    if args.gpt_j_tied and not args.gpt_j_residual:
        yield "gpt_j_tied shares the norm of two parallel branches; it needs gpt_j_residual: true"


@rule("use_bias_in_output", "no_weight_tying")
def _output_bias(args: Any) -> Iterator[str]:
    if args.use_bias_in_output and not args.no_weight_tying:
        yield "use_bias_in_output: an output layer tied to the word embeddings has no bias; set no_weight_tying: true"


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


@rule("pos_emb", "num_layers", "checkpoint_activations", "checkpoint_num_layers", "zero_stage")
def _shared_positions(args: Any) -> Iterator[str]:
    stretches = (args.num_layers or 1) / max(1, args.checkpoint_num_layers)
    if args.pos_emb == "rpe" and args.checkpoint_activations and args.zero_stage >= 2 and stretches > 1:
        yield (
            f"pos_emb: rpe with checkpoint_activations needs zero_optimization.stage 0 or 1, not {args.zero_stage}: "
            "all layers share its table, each recomputed stretch of them brings a gradient of its own, and DeepSpeed "
            "takes one"
        )


rule(
    "attention_config",
    "hidden_size",
    "intermediate_size",
    "expansion_factor",
    "model_parallel_size",
    "mamba_inner_func_fusion",
    "mamba_use_bias_in_linears",
)(block_sizes.problems)
rule(
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
)(mlp_sizes.problems)
rule(
    "rope_scaling",
    "pos_emb",
    "rotary_pct",
    "max_position_embeddings",
    "hidden_size",
    "num_attention_heads",
    "head_dim",
)(rope_scaling.problems)
rule("soft_prompt_tuning", "seq_length", "isolate_documents", "curriculum_learning")(soft_prompt_problems)
rule(*experts.KEYS)(experts.problems)

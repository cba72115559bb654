"""Mixtures of experts: which layers have them, how wide they are, and what must hold for them."""

import math
from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.block_sizes import WITHOUT_MLP

KEYS = (
    "moe_num_experts",
    "moe_expert_interval",
    "moe_top_k",
    "moe_router_type",
    "moe_normalize_topk",
    "moe_aux_loss_coeff",
    "moe_z_loss_coeff",
    "moe_jitter_eps",
    "model_parallel_size",
    "attention_config",
)
# The width that GPT-NeoX rounds experts up to.
MULTIPLE_OF = 256


def has_experts(args: Any, layer_number: int) -> bool:
    """Whether a mixture of experts takes the place of the MLP in a layer, counted from 0."""
    return args.moe_num_experts > 1 and layer_number % args.moe_expert_interval == 0


def expert_width(args: Any) -> int:
    """Inner width of each expert: ffn_hidden_size as it stands; else that of a dense MLP without a gate, rounded up to
    mlp_multiple_of, or to 256 where the config asks for no rounding.

    Gated experts have two matrices of this width each, as GPT-NeoX's gated experts (and Mixtral's) have.
    """
    if args.ffn_hidden_size is not None:
        return args.ffn_hidden_size
    width = args.intermediate_size or int((args.expansion_factor or 4) * args.hidden_size)
    multiple = args.mlp_multiple_of if args.mlp_multiple_of > 1 else MULTIPLE_OF
    return math.ceil(width / multiple) * multiple


def problems(args: Any) -> Iterator[str]:
    """What is wrong with the experts of a configuration."""
    numbers = ("moe_num_experts", "moe_expert_interval", "moe_top_k")
    wrong = [f"{key}={getattr(args, key)} must be above 0" for key in numbers if getattr(args, key) < 1]
    for key in ("moe_aux_loss_coeff", "moe_z_loss_coeff"):
        if getattr(args, key) < 0:
            wrong.append(f"{key}={getattr(args, key)} must not be negative")
    if args.moe_jitter_eps is not None and not 0 <= args.moe_jitter_eps < 1:
        wrong.append(f"moe_jitter_eps={args.moe_jitter_eps} must be at least 0 and below 1")
    yield from wrong or (_without_experts(args) if args.moe_num_experts == 1 else _with_experts(args))


def _without_experts(args: Any) -> Iterator[str]:
    asked = {
        "moe_top_k": args.moe_top_k > 1,
        "moe_normalize_topk": args.moe_normalize_topk,
        "moe_aux_loss_coeff": args.moe_aux_loss_coeff > 0,
        "moe_z_loss_coeff": args.moe_z_loss_coeff > 0,
        "moe_jitter_eps": args.moe_jitter_eps is not None,
    }
    for key, wanted in asked.items():
        if wanted:
            yield f"{key}={getattr(args, key)} needs moe_num_experts above 1"


def _with_experts(args: Any) -> Iterator[str]:
    experts, top_k, ranks = args.moe_num_experts, args.moe_top_k, args.model_parallel_size
    if experts % ranks:
        yield (
            f"moe_num_experts={experts} must be a multiple of model_parallel_size={ranks}: each of those processes "
            "has experts of its own"
        )
    if top_k > experts:
        yield f"moe_top_k={top_k} exceeds moe_num_experts={experts}"
    if args.moe_normalize_topk and top_k == 1:
        yield (
            "moe_normalize_topk gives a single expert the weight 1, so that the router cannot learn; set moe_top_k "
            "above 1"
        )
    if args.moe_jitter_eps is not None and args.moe_router_type != "topk":
        yield (
            f"moe_jitter_eps={args.moe_jitter_eps} is noise for moe_router_type: topk, which {args.moe_router_type} "
            "does without; leave it out"
        )
    kinds = (args.attention_config or ["global"])[:: args.moe_expert_interval]
    if all(kind in WITHOUT_MLP for kind in kinds):
        yield (
            f"moe_num_experts={experts} with moe_expert_interval={args.moe_expert_interval} gives experts to no layer: "
            "those of attention_config in question have no MLP"
        )

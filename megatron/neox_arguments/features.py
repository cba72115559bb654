"""What the choices of a config cannot be combined with: one table of features, one validator.

A choice says what it lacks where it is registered (megatron/registry.py). Looking that up imports the choices, and
with them torch, so this runs in the workers and in the planner, not in the launcher.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron import registry
from megatron.common.errors import ConfigError
from megatron.neox_arguments.mlp_sizes import GATED_ACTIVATIONS
from megatron.neox_arguments.rope_scaling import kind_of


@dataclass(frozen=True)
class Feature:
    """A way of running that a choice may not support. keys: what asks for it, as the user reads it; wanted: whether a
    config does; example: config values by which a tiny model does, where no registered choice stands for it."""

    keys: str
    wanted: Callable[[Any], bool]
    example: dict[str, Any] = field(default_factory=dict)


def _grouped(args: Any) -> bool:
    return args.num_kv_heads not in (None, args.num_attention_heads)


FEATURES = {
    "tensor parallelism": Feature("model_parallel_size", lambda args: args.model_parallel_size > 1),
    "sequence parallelism": Feature(
        "sequence_parallel", lambda args: args.sequence_parallel and args.model_parallel_size > 1
    ),
    "pipeline parallelism": Feature("pipe_parallel_size", lambda args: args.pipe_parallel_size > 1),
    "zero 1": Feature("zero_optimization.stage: 1", lambda args: args.zero_stage == 1),
    "zero 2": Feature("zero_optimization.stage: 2", lambda args: args.zero_stage == 2),
    "zero 3": Feature("zero_optimization.stage: 3", lambda args: args.zero_stage == 3),
    "16-bit precision": Feature("precision", lambda args: args.precision != "fp32"),
    "activation checkpointing": Feature(
        "checkpoint_activations", lambda args: args.checkpoint_activations, {"checkpoint_activations": True}
    ),
    "grouped heads": Feature("num_kv_heads", _grouped, {"num_kv_heads": 1}),
    "sliding window": Feature(
        "sliding_window_width",
        lambda args: args.sliding_window_width is not None,
        {"sliding_window_width": 5},
    ),
    "query-key norm": Feature(
        "use_qk_layernorm", lambda args: args.use_qk_layernorm, {"use_qk_layernorm": True}
    ),
    "isolated documents": Feature(
        "isolate_documents", lambda args: args.isolate_documents, {"isolate_documents": True}
    ),
    "attention dropout": Feature("attention_dropout", lambda args: args.attention_dropout > 0),
    "rotary positions": Feature("pos_emb: rotary", lambda args: args.pos_emb == "rotary"),
    "alibi": Feature("pos_emb: alibi", lambda args: args.pos_emb == "alibi"),
    "relative position bias": Feature("pos_emb: rpe", lambda args: args.pos_emb == "rpe"),
    "parallel residual": Feature(
        "gpt_j_residual", lambda args: args.gpt_j_residual, {"gpt_j_residual": True}
    ),
    "shared norm": Feature(
        "gpt_j_tied", lambda args: args.gpt_j_tied, {"gpt_j_residual": True, "gpt_j_tied": True}
    ),
    "norms without biases": Feature("use_bias_in_norms: false", lambda args: not args.use_bias_in_norms),
    "tied output": Feature(
        "no_weight_tying: false", lambda args: not args.no_weight_tying, {"no_weight_tying": False}
    ),
    "soft prompt": Feature(
        "soft_prompt_tuning",
        lambda args: bool((args.soft_prompt_tuning or {}).get("enabled")),
        {"soft_prompt_tuning": {"enabled": True, "n_tokens": 3, "init_string": "ab"}},
    ),
    "shared layers": Feature(
        "num_unique_layers", lambda args: args.num_unique_layers is not None, {"num_unique_layers": 1}
    ),
    "mixture of experts": Feature("moe_num_experts", lambda args: args.moe_num_experts > 1),
    "hidden dropout": Feature("hidden_dropout", lambda args: args.hidden_dropout > 0),
    "gated activation": Feature("activation", lambda args: args.activation in GATED_ACTIVATIONS),
    "norms behind branches": Feature(
        "norm_placement: post", lambda args: args.norm_placement == "post", {"norm_placement": "post"}
    ),
    "embedding norm": Feature(
        "embedding_layernorm", lambda args: args.embedding_layernorm, {"embedding_layernorm": True}
    ),
    "embeddings of another width": Feature(
        "embedding_size",
        lambda args: args.embedding_size not in (None, args.hidden_size),
        {"embedding_size": 16, "no_weight_tying": False},
    ),
    "output bias": Feature(
        "use_bias_in_output", lambda args: args.use_bias_in_output, {"use_bias_in_output": True}
    ),
    "maximal update parametrisation": Feature("use_mup", lambda args: args.use_mup),
}
# Not a key of training: asked for by who samples.
CACHED_GENERATION = "cached generation"


def choices(args: Any) -> Iterator[tuple[str, str, str]]:
    """(kind, name, key that selects it) of everything the config chooses from the registry."""
    for name in dict.fromkeys(args.attention_config):
        yield ("block" if name in registry.names("block") else "attention"), name, "attention_config"
    yield "norm", args.norm, "norm"
    yield "activation", args.activation, "activation"
    yield "positional embedding", args.pos_emb, "pos_emb"
    if args.rope_scaling is not None:
        yield "rope scaling", kind_of(args.rope_scaling), "rope_scaling.rope_type"
    yield "init method", args.init_method, "init_method"
    yield "init method", args.output_layer_init_method, "output_layer_init_method"
    if args.moe_num_experts > 1:
        yield "router", args.moe_router_type, "moe_router_type"
    if args.optimizer is not None:
        yield "optimizer", args.optimizer_type, "optimizer.type"
        yield "learning rate schedule", args.lr_decay_style, "lr_decay_style"


# The other way round: which config values select a choice of a kind.
SELECTED_BY: dict[str, Callable[[str], dict[str, Any]]] = {
    "attention": lambda name: {"attention_config": [[[name], "all"]]},
    "block": lambda name: {"attention_config": [[[name], "all"]]},
    "router": lambda name: {"moe_router_type": name},
    "norm": lambda name: {"norm": name},
    "activation": lambda name: {"activation": name},
    "positional embedding": lambda name: {"pos_emb": name},
    "rope scaling": lambda name: {"rope_scaling": {"rope_type": name}},
    "init method": lambda name: {"init_method": name, "output_layer_init_method": name},
    "optimizer": lambda name: {"optimizer": {"type": name, "params": {"lr": 1e-3}}},
    "learning rate schedule": lambda name: {"lr_decay_style": name},
}


def settings_of(kind: str, name: str) -> dict[str, Any]:
    """Config values with which a tiny model uses a choice: those that select it, and its example."""
    settings = SELECTED_BY[kind](name)
    for key, value in registry.entry(kind, name).example.items():
        both = isinstance(value, dict) and isinstance(settings.get(key), dict)
        settings[key] = {**settings[key], **value} if both else value
    return settings


def refusals(args: Any, cached: bool = False) -> Iterator[str]:
    """One line for every feature asked for that a choice does not support. cached: generation with a cache is asked
    for as well."""
    for kind, name, key in choices(args):
        for feature, reason in registry.entry(kind, name).lacks.items():
            if feature == CACHED_GENERATION:
                if cached:
                    yield f"{key}: {name} does not support {feature}: {reason}; set recompute: true"
            elif FEATURES[feature].wanted(args):
                yield f"{key}: {name} does not support {feature} ({FEATURES[feature].keys}): {reason}"


def check_features(args: Any, cached: bool = False) -> None:
    """Raises: ConfigError with all refusals."""
    if problems := list(refusals(args, cached)):
        raise ConfigError(problems)

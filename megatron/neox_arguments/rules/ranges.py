"""Keys that must be set, and numbers that have bounds."""

from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.steps import Steps

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


@rule("num_nodes")
def _machines(args: Any) -> Iterator[str]:
    if args.num_nodes < 1 and args.num_nodes != -1:
        yield f"num_nodes={args.num_nodes} must be above 0, or -1 for all machines"


def _must_be_set(key: str) -> None:
    @rule(key)
    def _is_set(args: Any) -> Iterator[str]:
        if getattr(args, key) is None:
            yield f"{key} must be set"


for _key in REQUIRED:
    _must_be_set(_key)

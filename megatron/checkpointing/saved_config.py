"""What a run must have in common with the run that saved its checkpoint, beyond the shapes of the weights."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron.common.console import warn
from megatron.common.errors import CheckpointError, ConfigError
from megatron.neox_arguments.attention_sizes import head_size, key_value_heads
from megatron.neox_arguments.attention_types import expand_attention_types
from megatron.neox_arguments.mlp_sizes import mlp_sizes

CONFIG = "neox_args.json"

# Another value is another model, whether or not its weights have the same shapes.
_MODEL = (
    "gpt_j_residual",
    "gpt_j_tied",
    "pos_emb",
    "rotary_pct",
    "opt_pos_emb_offset",
    "rpe_max_distance",
    "norm",
    "activation",
    "no_weight_tying",
    "use_bias_in_norms",
    "use_bias_in_attn_linear",
    "use_bias_in_mlp",
    "norm_placement",
    "num_unique_layers",
    "param_sharing_style",
    "attention_softmax_scale",
    "moe_num_experts",
    "moe_expert_interval",
    "moe_top_k",
    "moe_router_type",
    "moe_normalize_topk",
)
# Another value is sometimes meant, as when a model is made to read longer texts.
_PRECISE = (
    "soft_prompt_tuning",
    "rotary_emb_base",
    "rope_scaling",
    "attention_config",
    "sparsity_config",
    "sliding_window_width",
    "bias_gelu_fusion",
    "use_mup",
    "layernorm_epsilon",
    "rms_norm_epsilon",
    "isolate_documents",
)
# With another value sample n is another sample.
_DATA = (
    "seed",
    "seq_length",
    "data_path",
    "split",
    "train_data_paths",
    "train_data_weights",
    "train_label_data_paths",
    "weight_by_num_documents",
    "pack_impl",
)
# Optimizers that keep the same states.
_SAME_STATES = {"adamw": "adam"}


def check_saved_config(neox_args, directory: Path, resumes: bool) -> None:
    """Compare the config with the one kept in a checkpoint; one without a config is not compared.

    Args: resumes: the run goes on where the checkpoint was saved, with its optimizer and its data.
    Raises: CheckpointError naming every setting that makes another model or another optimizer. Warns of settings that
    may be meant.
    """
    saved = read_saved_config(directory)
    if saved is None:
        return
    _check_model(neox_args, saved, directory)
    if resumes:
        _check_training(neox_args, saved, directory)
    if differing := _differing(neox_args, saved, _PRECISE):
        warn(f"the weights of {directory} were trained with another setting: " + "; ".join(differing))
    if resumes:
        _warn_of_other_data(neox_args, saved)


def _check_model(neox_args, saved: dict, directory: Path) -> None:
    differing = _differing(neox_args, saved, _MODEL)
    width, own_width = _mlp_width(saved.get), _mlp_width(lambda key: getattr(neox_args, key))
    if width not in (own_width, None):
        differing.append(f"the width of the MLP is {width} in the checkpoint and {own_width} in the config")
    differing += _differing_heads(neox_args, saved)
    if differing:
        raise CheckpointError(f"the checkpoint in {directory} is of another model: " + "; ".join(differing))


def _check_training(neox_args, saved: dict, directory: Path) -> None:
    """What is trained, and with which optimizer."""
    if _has_prompt(neox_args.soft_prompt_tuning) and not _has_prompt(saved.get("soft_prompt_tuning")):
        raise CheckpointError(
            f"the checkpoint in {directory} has no soft prompt to go on with (soft_prompt_tuning): set finetune: true "
            "to train one for its weights"
        )
    optimizer = saved.get("optimizer_type")
    if optimizer and _states(optimizer) != _states(neox_args.optimizer_type):
        raise CheckpointError(
            f"{directory} has the states of optimizer {optimizer}, and the config names {neox_args.optimizer_type}; "
            "keep the optimizer, or take the weights only with no_load_optim or finetune"
        )


def _has_prompt(options: dict | None) -> bool:
    return bool((options or {}).get("enabled"))


def _warn_of_other_data(neox_args, saved: dict) -> None:
    if differing := _differing(neox_args, saved, _DATA):
        warn("from here on samples may be seen again or left out: " + "; ".join(differing))
    if differing := _differing(neox_args, saved, ("train_batch_size",)):
        _warn_of_another_amount(neox_args, saved, differing[0])


def _warn_of_another_amount(neox_args, saved: dict, batch_size: str) -> None:
    """The data goes on at the same sample, in an order that may depend on how many samples are wanted in all."""
    if not saved.get("train_iters") or not neox_args.train_iters:
        return
    before = saved["train_iters"] * saved["train_batch_size"]
    now = neox_args.train_iters * neox_args.train_batch_size
    if before != now:
        warn(
            f"{batch_size}, so that {now} samples are read in all and not {before}: if that takes the data through "
            "another number of epochs, samples may be seen again or left out; train_iters can keep the number"
        )


def read_saved_config(directory: Path) -> dict | None:
    """The merged config of the run that saved a checkpoint, if it is there."""
    try:
        saved = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) else None


def _differing(neox_args, saved: dict, keys: tuple[str, ...]) -> list[str]:
    return [
        f"{key} is {saved[key]} in the checkpoint and {getattr(neox_args, key)} in the config"
        for key in keys
        if key in saved
        and _comparable(key, saved[key], neox_args) != _comparable(key, getattr(neox_args, key), neox_args)
    ]


def _comparable(key: str, value: Any, neox_args) -> Any:
    if key == "attention_config":
        # With a converted model it is kept as its config has it.
        kinds = expand_attention_types(value, neox_args.num_layers) if value else []
        return ["global" if kind == "flash" else kind for kind in kinds]  # two names of one kind
    return value


def _differing_heads(neox_args, saved: dict) -> list[str]:
    """The head counts in effect, and the size of a head, which have defaults that follow from other keys."""
    keys = ("hidden_size", "num_attention_heads", "num_kv_heads", "head_dim")
    args = SimpleNamespace(**{key: saved.get(key) for key in keys})
    if args.hidden_size is None or args.num_attention_heads is None:
        return []
    return [
        f"{key} is {size(args)} in the checkpoint and {size(neox_args)} in the config"
        for key, size in (("num_kv_heads", key_value_heads), ("head_dim", head_size))
        if size(args) != size(neox_args)
    ]


def _mlp_width(value_of: Callable[[str], Any]) -> int | None:
    keys = ("hidden_size", "activation", "ffn_hidden_size", "intermediate_size", "expansion_factor")
    args = SimpleNamespace(
        **{key: value_of(key) for key in keys}, mlp_multiple_of=value_of("mlp_multiple_of") or 1
    )
    try:
        return None if args.hidden_size is None else mlp_sizes(args).linear2_input
    except ConfigError:
        return None


def _states(optimizer: str) -> str:
    return _SAME_STATES.get(optimizer, optimizer)

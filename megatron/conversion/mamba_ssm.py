"""Export to the package mamba_ssm: pytorch_model.bin and config.json, as its from_pretrained reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.checkpointing.writing import write_tensors
from megatron.common.console import Progress, info
from megatron.common.errors import ConfigError
from megatron.common.files import atomic_path, make_folder, writing
from megatron.conversion.casting import cast
from megatron.conversion.reshaping import find_checkpoint
from megatron.conversion.saved_model import SavedModel, open_checkpoint
from megatron.conversion.specs import model_config
from megatron.conversion.to_hf import config_values, output_dtype, vocabulary
from megatron.families import family_named
from megatron.neox_arguments import NeoXArgs

_EPSILON = 1e-5
_NORMS = {"rmsnorm": True, "layernorm": False}


def export_mamba_ssm(
    checkpoint: str | Path, configs: Sequence[str | Path], target: str | Path, precision: str = "fp32"
) -> Path:
    """Write a checkpoint of Mamba layers for the package. Args as those of export_hf. Returns: target.

    Raises: ConfigError for what the package cannot express.
    """
    checkpoint = find_checkpoint(checkpoint)
    args = model_config(config_values(checkpoint, configs))
    saved = open_checkpoint(checkpoint)
    _, rows = vocabulary(args, saved)
    args.tokenizer = None
    config = _config(args, rows)
    model = SavedModel(saved, args, rows)
    rules = [rule for rule in family_named("mamba").rules(args) if rule.native in model.specs]
    dtype = output_dtype(args, precision)
    weights = {}
    with Progress(len(rules), "tensors", "exporting") as progress:
        for rule in rules:
            for name, part in zip(rule.theirs, rule.form.split(model.whole(rule.native)), strict=True):
                name = name.replace("backbone.embeddings.", "backbone.embedding.")
                weights[name] = cast(part, dtype, name).contiguous()
            progress.update(1, rule.native)
    # The package stores an output that shares the embedding as well.
    weights.setdefault("lm_head.weight", weights["backbone.embedding.weight"])
    target = make_folder(target, "output_dir")
    with writing(target):
        with atomic_path(target / "pytorch_model.bin") as path:
            write_tensors(weights, path)
        (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    info(f"wrote a model of mamba_ssm into {target}")
    return target


def _config(args: NeoXArgs, rows: int) -> dict[str, Any]:
    if args.norm not in _NORMS:
        raise ConfigError(f"mamba_ssm cannot express norm={args.norm!r}, only {' or '.join(_NORMS)}")
    epsilon = args.rms_norm_epsilon if _NORMS[args.norm] else args.layernorm_epsilon
    if epsilon != _EPSILON:
        raise ConfigError(f"mamba_ssm cannot express norms with an epsilon of {epsilon}, only {_EPSILON}")
    theirs = family_named("mamba").to_hf(args.variant(norm="rmsnorm"), rows)
    return {
        "d_model": args.hidden_size,
        "n_layer": args.num_layers,
        "vocab_size": rows,
        "ssm_cfg": {"expand": theirs["expand"], "conv_bias": args.mamba_use_bias_in_conv},
        "rms_norm": _NORMS[args.norm],
        "residual_in_fp32": False,
        "fused_add_norm": True,
        # All rows are there already.
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": not args.no_weight_tying,
    }

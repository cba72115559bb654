"""Export: a checkpoint in any layout becomes a folder that transformers loads."""

import contextlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing.manifest import read_manifest
from megatron.checkpointing.weights import SavedWeights
from megatron.common.console import Progress, info
from megatron.common.errors import CheckpointError, ConfigError, TokenizerError
from megatron.common.files import make_folder, writing
from megatron.conversion.casting import cast
from megatron.conversion.from_hf import DTYPES
from megatron.conversion.reshaping import find_checkpoint
from megatron.conversion.saved_model import SavedModel, open_checkpoint
from megatron.conversion.specs import model_config
from megatron.conversion.tokenizers import export_tokenizer
from megatron.families import Family, Rule, families, family_named
from megatron.model.vocabulary import logical_vocab_size
from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.loading import read_files
from megatron.tokenizer.build import TokenizerSpec

SHARD_SIZE = "5GB"
_UNITS = ("B", "KB", "MB", "GB", "TB")


def export_hf(
    checkpoint: str | Path,
    configs: Sequence[str | Path],
    target: str | Path,
    architecture: str = "neox",
    precision: str = "auto",
    save_tokenizer: bool = True,
    vocab_is_hf_tokenizer: bool = False,
    pad_token_id: int | None = None,
    shard_size: str = SHARD_SIZE,
    overwrite_values: dict[str, Any] | None = None,
) -> Path:
    """Write a Hugging Face model: safetensors, config, generation config and tokenizer.

    Args:
        checkpoint: folder of one checkpoint (global_stepN), or of several, of which `latest` names one.
        configs: the files it was trained with, of which those beside the weights are taken if there are none.
        architecture: a family's name; precision: fp16, bf16, fp32, or auto for that of the config.
    Returns: target.
    Raises: ConfigError for what the family cannot express; CheckpointError for weights that cannot be read.
    """
    checkpoint = find_checkpoint(checkpoint)
    values = config_values(checkpoint, configs) | (overwrite_values or {})
    args = model_config(values)
    family = family_named(architecture)
    saved = open_checkpoint(checkpoint)
    tokenizer, rows = vocabulary(args, saved)
    # The rows are known, whatever a tokenizer would say.
    args.tokenizer = None
    config = _their_config(family, args, rows)
    model = SavedModel(saved, args, rows)
    specs = model.specs
    rules = [rule for rule in family.rules(args) if rule.native in specs]
    assert len(rules) == len(specs), sorted(set(specs) - {rule.native for rule in rules})
    if pad_token_id is not None and pad_token_id >= rows:
        raise ConfigError(f"--pad-token-id {pad_token_id} is beyond the model's vocabulary of {rows} rows")
    dtype = output_dtype(args, precision)
    made = _made_config(family, config, dtype, tokenizer, pad_token_id)
    size = _bytes(shard_size)
    target = make_folder(target, "output_dir")
    with writing(target):
        _write_weights(target, rules, model, dtype, size)
        _write_config(target, made)
        if save_tokenizer and export_tokenizer(args, target, pad_token_id, vocab_is_hf_tokenizer):
            info(f"wrote the tokenizer into {target}")
    info(f"wrote {family.architecture} into {target}")
    return target


def config_values(checkpoint: Path, configs: Sequence[str | Path]) -> dict[str, Any]:
    """The config of a checkpoint: of the given files, or of those kept with it."""
    files = list(configs) or sorted((checkpoint / "configs").glob("*"))
    if not files:
        raise ConfigError(
            f"{checkpoint} holds no configs; name the files it was trained with (--config_file)"
        )
    return read_files(files)[0]


def vocabulary(args: NeoXArgs, saved: SavedWeights) -> tuple[Any, int]:
    """(tokenizer or None, rows of the model's vocabulary).

    Rows that only a layout has asked for are left out. GPT-NeoX trains those too, so all of its rows count.
    """
    rows = sum(saved.layer(0, rank)["word_embeddings.weight"].shape[0] for rank in range(saved.tensor_size))
    tokenizer = None
    # Without its files the model can still be had.
    with contextlib.suppress(TokenizerError, ImportError):
        tokenizer = TokenizerSpec(args.tokenizer_type, args.vocab_file, args.merge_file).build()
    description = read_manifest(saved.directory)
    if description is None:
        return tokenizer, rows
    if "vocabulary" in description:
        return tokenizer, min(rows, int(description["vocabulary"]))
    if tokenizer is None:
        return None, rows
    args.tokenizer, args.padded_vocab_size = tokenizer, rows
    return tokenizer, logical_vocab_size(args)


def _their_config(family: Family, args: NeoXArgs, rows: int) -> dict[str, Any]:
    try:
        return family.to_hf(args, rows)
    except ConfigError as error:
        able = [other.model_type for other in families() if _can_express(other, args, rows)]
        hint = f"--architecture {' or '.join(able)} can" if able else "no other architecture can"
        raise ConfigError([*error.problems[:-1], f"{error.problems[-1]}; {hint}"]) from None


def _can_express(family: Family, args: NeoXArgs, rows: int) -> bool:
    try:
        family.to_hf(args, rows)
    except ConfigError:
        return False
    return True


def output_dtype(args: NeoXArgs, precision: str) -> torch.dtype:
    """Number format that --precision asks for; `auto` is the config's."""
    if precision == "auto":
        precision = {"fp16": "fp16", "bfloat16": "bf16"}.get(args.precision or "", "fp32")
    return DTYPES[precision]


def _bytes(size: str) -> int:
    """`5GB` as a number. Raises: ConfigError."""
    found = re.fullmatch(r"(\d+) *([KMGT]?B)", size.strip(), re.IGNORECASE)
    number = int(found[1]) * 1000 ** _UNITS.index(found[2].upper()) if found else 0
    if not number:
        raise ConfigError(f"--max_shard_size {size!r} is no size such as 5GB or 500MB")
    return number


def _write_weights(
    target: Path, rules: list[Rule], model: SavedModel, dtype: torch.dtype, shard_size: int
) -> None:
    """safetensors files of at most shard_size, one in memory at a time, and their index if there are several."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    blank = {}
    makers: dict[str, tuple[Rule, int]] = {}
    for rule in rules:
        shape = torch.empty(model.specs[rule.native].logical_shape, dtype=dtype, device="meta")
        for number, (name, part) in enumerate(zip(rule.theirs, rule.form.split(shape), strict=True)):
            # A tensor of its own: parts of one storage would be taken for shared weights.
            blank[name] = torch.empty(part.shape, dtype=dtype, device="meta")
            makers[name] = (rule, number)
    _check_dropped(rules, model)
    for stale in target.glob("model*.safetensors*"):
        stale.unlink()
    plan = split_torch_state_dict_into_shards(blank, max_shard_size=shard_size)
    with Progress(len(makers), "tensors", "exporting") as progress:
        for file, names in plan.filename_to_tensors.items():
            shard, known = {}, (None, [])
            for name in names:
                rule, number = makers[name]
                if known[0] is not rule:
                    known = (rule, rule.form.split(model.whole(rule.native)))
                shard[name] = cast(known[1][number], dtype, name, copy=True).contiguous()
                progress.update(1, name)
            try:
                save_file(shard, str(target / file), metadata={"format": "pt"})
            except SafetensorError as error:
                raise CheckpointError(f"{target / file} cannot be written ({error})") from error
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _check_dropped(rules: list[Rule], model: SavedModel) -> None:
    """Raises: CheckpointError if a parameter that they do not have makes a difference."""
    for rule in rules:
        if not rule.theirs and not rule.unused and not bool((model.whole(rule.native) == rule.fill).all()):
            raise CheckpointError(
                f"{rule.native} has no place in the other model and is not {rule.fill:g} throughout"
            )


def _made_config(
    family: Family, config: dict[str, Any], dtype: torch.dtype, tokenizer: Any, pad: int | None
) -> Any:
    """transformers' config object. Raises: ConfigError if transformers refuses it."""
    from transformers import AutoConfig

    logging.getLogger("transformers").setLevel(logging.ERROR)
    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": pad}
    if tokenizer is not None:
        with contextlib.suppress(TokenizerError):
            special["bos_token_id"] = special["eos_token_id"] = tokenizer.eod
    try:
        made = AutoConfig.for_model(family.model_type, **config, **special)
    except Exception as error:  # what transformers raises is of many kinds
        reason = " ".join(str(error).split())
        raise ConfigError(f"{family.architecture} cannot be made of this config: {reason}") from error
    made.architectures = [family.architecture]
    made.dtype = dtype
    return made


def _write_config(target: Path, config: Any) -> None:
    from transformers import GenerationConfig

    config.save_pretrained(str(target))
    GenerationConfig.from_model_config(config).save_pretrained(str(target))

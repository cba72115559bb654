"""Import: a model of another program becomes a checkpoint that this one trains, in any layout."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from megatron.checkpointing.names import get_checkpoint_tag
from megatron.checkpointing.provenance import checkpoint_args
from megatron.common.console import Progress, info, warn
from megatron.common.errors import CheckpointError, ConfigError, TokenizerError
from megatron.common.files import make_folder, remove, writing
from megatron.conversion.hf_folder import HFFolder, read_config
from megatron.conversion.native_tree import CONFIG_FILE, NativeTree, refuse_existing
from megatron.conversion.specs import model_config, parameter_specs
from megatron.conversion.tokenizers import (
    FOLDER,
    copy_files,
    tokenizer_keys,
    vocabulary_divisor,
    vocabulary_of,
)
from megatron.families import Family, Rule, family_named
from megatron.neox_arguments import NeoXArgs
from megatron.tokenizer.build import vocab_size_with_padding

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_PRECISION = {torch.float16: "fp16", torch.bfloat16: "bfloat16"}

# What a run needs beside the architecture; the user is expected to change it.
_TRAINING: dict[str, Any] = {
    "finetune": True,
    "train_micro_batch_size_per_gpu": 1,
    "train_iters": 1000,
    "optimizer": {"type": "Adam", "params": {"lr": 1.0e-5, "betas": [0.9, 0.95], "eps": 1.0e-8}},
    "lr_decay_style": "cosine",
    "warmup": 0.01,
    "min_lr": 1.0e-6,
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
}
_HEADER = """# {name}, taken over from {source}.
# Add data_path (or train_data_paths, ...) and save, and set the training keys below as you like; then
#   python deepy.py train.py {config} YOUR_DATA.yml
# finetune: true starts from these weights at iteration 0; leave it out when you go on from a checkpoint of your run.
"""


class Source(Protocol):
    """Tensors of a model under the names of its family."""

    @property
    def names(self) -> set[str]: ...

    def read(self, name: str) -> torch.Tensor: ...

    def dtype(self, names: Iterable[str]) -> torch.dtype: ...


def import_hf(
    folder: str | Path,
    target: str | Path,
    tensor: int = 1,
    pipe: int = 0,
    precision: str = "auto",
    tag: str = get_checkpoint_tag(0),
) -> Path:
    """Turn the Hugging Face model in a local folder into a checkpoint with config and tokenizer.

    Args:
        target: folder that gets the checkpoint (`load` of a run), config.yml and tokenizer/.
        tensor, pipe: layout of the files; a run may have another one.
        precision: of the files: fp16, bf16, fp32, or auto for that of the model.
    Returns: the config file.
    Raises: ConfigError for what a config cannot express, CheckpointError for weights that are not as they should be.
    """
    config = read_config(folder)
    try:
        family = family_named(config["model_type"])
    except ConfigError as error:
        raise ConfigError(f"{Path(folder, 'config.json')}: model_type: {error}") from None
    return import_model(family, config, HFFolder(folder), Path(folder), target, tensor, pipe, precision, tag)


def import_model(
    family: Family,
    config: Mapping[str, Any],
    source: Source,
    tokenizer_folder: Path,
    target: str | Path,
    tensor: int = 1,
    pipe: int = 0,
    precision: str = "auto",
    tag: str = get_checkpoint_tag(0),
) -> Path:
    """import_hf for tensors of any origin. config: all keys of the Hugging Face config of the model."""
    if tensor < 1:
        raise ConfigError(f"--tp {tensor}: a model has at least one tensor rank")
    refuse_existing(Path(target, tag))
    architecture = family.from_hf(config)
    target = make_folder(target, "output_dir")
    keys, ids = _tokenizer(tokenizer_folder, target)
    divisor = vocabulary_divisor(config["vocab_size"], ids)
    layout = {"model_parallel_size": tensor, "pipe_parallel_size": pipe}
    values = {**architecture, "make_vocab_size_divisible_by": divisor, **keys, **layout}
    args = model_config(values)
    specs = parameter_specs(args, vocab_size_with_padding(ids or divisor, divisor, tensor))
    used = _used(list(family.rules(args)), set(specs), source, family, family.architecture)
    _check_shared(list(family.rules(args)), set(specs), source)
    names = [name for rule in used for name in rule.theirs]
    dtype = source.dtype(_resolved(source, family, names)) if precision == "auto" else DTYPES[precision]
    run = {**values, **_run_keys(dtype), "load": str(target), **_TRAINING}
    file = shlex.quote(str(target / CONFIG_FILE))
    header = _HEADER.format(name=family.architecture, source=tokenizer_folder, config=file)
    description = _description(args, tensor, pipe, dtype, bool(keys)) | {"vocabulary": config["vocab_size"]}
    with writing(target):
        tree = NativeTree(target, tag, specs, tensor, pipe, dtype)
        try:
            _fill(tree, used, source, family, config["vocab_size"])
            written = tree.seal(run, header, description)
        finally:
            tree.discard()
    info(f"wrote {tree.directory} and {written}")
    return written


def _tokenizer(source: Path, target: Path) -> tuple[dict[str, Any], int | None]:
    """Take the tokenizer along. Returns: (the config keys that name it, number of its ids if that can be had)."""
    folder = target / FOLDER
    if source.resolve() != folder.resolve():
        remove(folder)
        copy_files(source, folder)
    keys = tokenizer_keys(folder) if folder.is_dir() else {}
    try:
        return keys, vocabulary_of(keys)
    except TokenizerError as error:
        warn(f"the config names no tokenizer: {error}")
        return {}, None


def _run_keys(dtype: torch.dtype) -> dict[str, Any]:
    return {"precision": _PRECISION[dtype]} if dtype in _PRECISION else {"precision": "fp32"}


def _description(args: NeoXArgs, tensor: int, pipe: int, dtype: torch.dtype, tokenizer: bool) -> dict:
    """What the manifest says of the model; the run may choose a tokenizer if there was none."""
    saved = checkpoint_args(args)
    if not tokenizer:
        del saved["tokenizer_type"]
    layout = {
        "data_parallel_size": 1,
        "model_parallel_size": tensor,
        "pipe_parallel_size": pipe,
        "zero_stage": 0,
        "precision": _run_keys(dtype)["precision"],
        "world_size": tensor * max(1, pipe),
    }
    return {"layout": layout, "args": saved, "git_hash": args.git_hash, "optimizer": False}


def _used(rules: list[Rule], native: set[str], source: Source, family: Family, what: str) -> list[Rule]:
    """The rules of the parameters that the model has.

    Raises: CheckpointError for tensors that are missing or that the model has no place for.
    """
    used = [rule for rule in rules if rule.native in native]
    assert {rule.native for rule in used} == native, sorted(native - {rule.native for rule in used})
    present = source.names
    wanted = {name for rule in used for name in rule.theirs}
    if missing := sorted(name for name in wanted if not _spellings(name, family) & present):
        raise CheckpointError(f"{what}: the weights {_listed(missing)} are missing")
    known = set().union(*(_spellings(name, family) for name in wanted))
    # An output that shares the embedding is stored by some.
    tied = {
        name
        for rule in rules
        if rule.native not in native
        for name in rule.theirs
        if not name.startswith(family.prefix)
    }
    left = sorted(name for name in present - known - tied if not name.endswith(family.computed))
    if left:
        raise CheckpointError(
            f"{what}: the model that its config describes has no place for the weights {_listed(left)}"
        )
    return used


def _check_shared(rules: list[Rule], native: set[str], source: Source) -> None:
    """Raises: CheckpointError if an output that shares the embedding is stored beside it with other values."""
    theirs = {rule.native: rule.theirs for rule in rules}
    output, (embedding, *_) = "final_linear.weight", theirs["0.word_embeddings.weight"]
    (stored,) = next(names for name, names in theirs.items() if name.endswith(output))
    if any(name.endswith(output) for name in native) or not {stored, embedding} <= source.names:
        return
    if not torch.equal(source.read(stored), source.read(embedding)):
        raise CheckpointError(
            f"{stored} is not equal to {embedding}, which it shares as tie_word_embeddings says: if both belong to the "
            "model, set that to false in its config.json"
        )


def _spellings(name: str, family: Family) -> set[str]:
    """A name, and the same in files of the model without its output."""
    return {name, name.removeprefix(family.prefix)}


def _resolved(source: Source, family: Family, names: Iterable[str]) -> Iterator[str]:
    present = source.names
    for name in names:
        yield name if name in present else name.removeprefix(family.prefix)


def _fill(tree: NativeTree, rules: list[Rule], source: Source, family: Family, rows: int) -> None:
    """rows: of the vocabulary, as their config says."""
    with Progress(len(rules), "tensors", "importing") as progress:
        for rule in rules:
            if rule.theirs:
                whole = rule.form.join([source.read(name) for name in _resolved(source, family, rule.theirs)])
            else:
                whole = torch.full(tree.specs[rule.native].logical_shape, rule.fill)
            if tree.specs[rule.native].vocabulary and whole.shape[0] != rows:
                raise CheckpointError(
                    f"{rule.theirs[0]} has {whole.shape[0]} rows, and the model's config says vocab_size={rows}"
                )
            tree.put(rule.native, whole)
            progress.update(1, rule.native)


def _listed(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

"""Tokenizer files that travel with a model."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

from megatron.common.console import warn
from megatron.common.errors import MissingPackageError, TokenizerError
from megatron.common.files import make_folder
from megatron.neox_arguments import NeoXArgs
from megatron.tokenizer.build import TokenizerSpec

FOLDER = "tokenizer"
# What a folder of a Hugging Face model may hold about its tokenizer.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
# The first kind whose files are there -> (tokenizer_type, vocab_file, merge_file).
_KINDS = (
    ("HFTokenizer", "tokenizer.json", None),
    ("SPMTokenizer", "tokenizer.model", None),
    ("GPT2BPETokenizer", "vocab.json", "merges.txt"),
)


def copy_files(source: Path, target: Path) -> list[str]:
    """Copy what is there of a tokenizer. Returns: the names."""
    found = [name for name in _FILES if (source / name).is_file()]
    if found:
        make_folder(target, "the tokenizer")
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def tokenizer_keys(folder: Path) -> dict[str, Any]:
    """The config keys of the tokenizer in a folder; none if there is none."""
    for kind, vocabulary, merges in _KINDS:
        if all((folder / name).is_file() for name in (vocabulary, merges) if name):
            keys = {"tokenizer_type": kind, "vocab_file": str(folder / vocabulary)}
            return keys | ({"merge_file": str(folder / merges)} if merges else {})
    return {}


def vocabulary_of(keys: dict[str, Any]) -> int | None:
    """Number of ids of a tokenizer; None if there is none, or, with a warning, if a package for it is missing.

    Raises: TokenizerError for a broken file.
    """
    if not keys:
        return None
    spec = TokenizerSpec(keys["tokenizer_type"], keys.get("vocab_file"), keys.get("merge_file"))
    try:
        return spec.build().vocab_size
    except MissingPackageError as error:
        warn(f"the number of the tokenizer's ids is not known: {error}")
        return None


def vocabulary_divisor(rows: int, ids: int | None) -> int:
    """make_vocab_size_divisible_by with which the tokenizer's ids are padded to just the rows that a model has.

    Args: rows: of the model's embedding; ids: of the tokenizer, None if it is not known.
    """
    if ids is None:
        return rows
    if ids > rows:
        raise TokenizerError(
            f"the tokenizer has {ids} ids and the model {rows} rows for them: the files do not belong together; "
            "take the tokenizer that the model was trained with"
        )
    # The smallest divisor with less than one multiple between the two; the number of rows itself always is one.
    return min(
        divisor
        for low in range(1, math.isqrt(rows) + 1)
        if rows % low == 0
        for divisor in (low, rows // low)
        if divisor > rows - ids
    )


def export_tokenizer(args: NeoXArgs, target: Path, pad_token_id: int | None, from_folder: bool) -> bool:
    """Write the config's tokenizer in Hugging Face's form. Returns: whether there is one.

    Args: from_folder: vocab_file lies in a folder of a Hugging Face tokenizer, which is taken as a whole.
    """
    if args.tokenizer_type not in ("HFTokenizer", "SPMTokenizer", "HFGPT2Tokenizer", "GPT2BPETokenizer"):
        return False
    if not args.vocab_file or not Path(args.vocab_file).is_file():
        return False
    source = Path(args.vocab_file).parent
    if from_folder or (source / "tokenizer_config.json").is_file():
        copy_files(source, target)
        return True
    if args.tokenizer_type != "HFTokenizer":
        shutil.copyfile(
            args.vocab_file,
            target / ("tokenizer.model" if args.tokenizer_type == "SPMTokenizer" else "vocab.json"),
        )
        if args.merge_file:
            shutil.copyfile(args.merge_file, target / "merges.txt")
        return True
    from transformers import PreTrainedTokenizerFast

    logging.getLogger("transformers").setLevel(logging.ERROR)
    fast = PreTrainedTokenizerFast(tokenizer_file=args.vocab_file)
    if pad_token_id is not None:
        fast.pad_token = fast.convert_ids_to_tokens(pad_token_id)
    fast.save_pretrained(str(target))
    return True

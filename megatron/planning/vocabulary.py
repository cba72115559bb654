"""The size of the vocabulary, read from the tokenizer where its files are here, assumed where not."""

from pathlib import Path
from typing import Any

from megatron.tokenizer.build import TokenizerSpec, vocab_size_with_padding

# GPT-2's; GPT-NeoX's own tokenizer pads to the same sizes.
ASSUMED = 50257


def vocabulary(neox_args: Any) -> tuple[int, str]:
    """Returns: (padded size, how it is known)."""
    size, source = _size(neox_args)
    padded = vocab_size_with_padding(
        size, neox_args.make_vocab_size_divisible_by, neox_args.model_parallel_size
    )
    return padded, f"{size:,} of {source}"


def _size(neox_args: Any) -> tuple[int, str]:
    kind, vocab_file, merge_file = neox_args.tokenizer_type, neox_args.vocab_file, neox_args.merge_file
    needed = [path for path in (vocab_file, merge_file) if path]
    if kind == "CharLevelTokenizer" or (needed and all(Path(path).is_file() for path in needed)):
        return TokenizerSpec(kind, vocab_file, merge_file).build().vocab_size, kind
    return ASSUMED, f"GPT-2, assumed: {kind}'s file {vocab_file!r} is not here"

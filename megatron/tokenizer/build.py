"""From the config to a tokenizer and the size of the model's vocabulary."""

from typing import Any, NamedTuple

from megatron.common.console import info
from megatron.registry import lookup
from megatron.tokenizer.abstract import AbstractTokenizer


class TokenizerSpec(NamedTuple):
    """What a tokenizer is made from; small enough to send to worker processes."""

    tokenizer_type: str
    vocab_file: str | None = None
    merge_file: str | None = None

    def build(self) -> AbstractTokenizer:
        """Raises: ConfigError for an unknown type, TokenizerError for missing or broken files."""
        return lookup("tokenizer", self.tokenizer_type).from_files(self.vocab_file, self.merge_file)


def build_tokenizer(args: Any) -> AbstractTokenizer:
    """Build the tokenizer a config asks for and set `args.padded_vocab_size`.

    Args: args: anything with rank, tokenizer_type, vocab_file, merge_file, make_vocab_size_divisible_by and
    model_parallel_size.
    Raises: ConfigError, TokenizerError as `TokenizerSpec.build`.
    """
    if args.rank == 0:
        info(f"> building {args.tokenizer_type} tokenizer ...")
    tokenizer = TokenizerSpec(args.tokenizer_type, args.vocab_file, args.merge_file).build()
    size = tokenizer.vocab_size
    padded = vocab_size_with_padding(size, args.make_vocab_size_divisible_by, args.model_parallel_size)
    args.padded_vocab_size = padded
    if args.rank == 0:
        info(f" > padded vocab (size: {size}) with {padded - size} dummy tokens (new size: {padded})")
    return tokenizer


def vocab_size_with_padding(vocab_size: int, divisible_by: int, model_parallel_size: int) -> int:
    """The smallest multiple of `divisible_by * model_parallel_size` that holds `vocab_size` ids."""
    multiple = divisible_by * model_parallel_size
    return -(-vocab_size // multiple) * multiple

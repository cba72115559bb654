"""Tokenizers: one type per file, all with the interface of `AbstractTokenizer`."""

from megatron.tokenizer.build import build_tokenizer

__all__ = ["build_tokenizer"]

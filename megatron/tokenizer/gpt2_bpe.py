"""GPT-2's byte-level BPE from vocab.json and merges.txt, through the compiled BPE of `tokenizers`."""

import json
from collections.abc import Sequence

from megatron.registry import register
from megatron.tokenizer.abstract import END_OF_TEXT, broken_file, require_file
from megatron.tokenizer.hf_tokenizer import CompiledTokenizer

VOCABULARY = "a GPT-2 vocabulary (JSON object of tokens and ids)"
MERGES = "a list of BPE merges, two tokens a line"


@register("tokenizer", "GPT2BPETokenizer")
class _GPT2BPETokenizer(CompiledTokenizer):
    """Same ids as the slow GPT-2 tokenizer: no normaliser, GPT-2's split into words, <|endoftext|> is special."""

    def __init__(self, vocab_file: str | None, merge_file: str | None):
        name = "GPT2BPETokenizer"
        vocab_file = require_file(vocab_file, name, "vocab_file", VOCABULARY)
        merge_file = require_file(merge_file, name, "merge_file", MERGES)
        super().__init__(name, _byte_level_bpe(vocab_file, merge_file))
        self._eod_id = self.tokenizer.token_to_id(END_OF_TEXT)

    @classmethod
    def from_files(cls, vocab_file, merge_file):
        return cls(vocab_file, merge_file)


def _byte_level_bpe(vocab_file: str, merge_file: str):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = _read_vocabulary(vocab_file)
    merges = _read_merges(merge_file)
    try:
        model = models.BPE(vocabulary, merges)
    except Exception as error:  # the library raises bare Exceptions
        raise broken_file(merge_file, f"{MERGES}, of the vocabulary {vocab_file}", error) from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if END_OF_TEXT in vocabulary:
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    return tokenizer


def _read_vocabulary(path: str) -> dict[str, int]:
    try:
        with open(path, encoding="utf-8") as file:
            vocabulary = json.load(file)
    except ValueError as error:
        raise broken_file(path, VOCABULARY, error) from error
    if not isinstance(vocabulary, dict) or not all(isinstance(value, int) for value in vocabulary.values()):
        raise broken_file(path, VOCABULARY, ValueError("the file holds something else"))
    return vocabulary


def _read_merges(path: str) -> Sequence[tuple[str, str]]:
    merges = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                line = line.rstrip("\r\n")
                if not line or (number == 1 and line.startswith("#version")):
                    continue
                left, separator, right = line.partition(" ")
                if not separator or " " in right:
                    raise ValueError(f"line {number} does not hold two tokens")
                merges.append((left, right))
    except ValueError as error:  # a wrong encoding is a ValueError too
        raise broken_file(path, MERGES, error) from error
    return merges

"""Tokenizers saved as one JSON file by the `tokenizers` library."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from megatron.registry import register
from megatron.tokenizer.abstract import END_OF_TEXT, PADDING, AbstractTokenizer, broken_file, require_file

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

KIND = "a tokenizer of the `tokenizers` library (tokenizer.json)"
# What published vocabularies call the end of a document, first match wins.
END_OF_DOCUMENT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


class CompiledTokenizer(AbstractTokenizer):
    """Anything the `tokenizers` library runs. Batches use several threads unless TOKENIZERS_PARALLELISM is false."""

    def __init__(self, name: str, tokenizer: "Tokenizer"):
        super().__init__(name)
        self.tokenizer = tokenizer

    @cached_property
    def vocab_size(self) -> int:
        # Files with gaps in their ids exist: a model needs a row for the highest id, not one per token.
        return max(self.vocab.values(), default=-1) + 1

    @cached_property
    def vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab(with_added_tokens=True)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # The fast variant leaves out character offsets, which nobody needs here.
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def tokenize_flat(self, texts: Sequence[str]) -> tuple["np.ndarray", list[int]]:
        import numpy as np

        encodings = self.tokenizer.encode_batch_fast(list(texts))
        lengths = [len(encoding) for encoding in encodings]
        flat = np.empty(sum(lengths), dtype=np.int32)
        end = 0
        for encoding, length in zip(encodings, lengths, strict=True):
            start, end = end, end + length
            flat[start:end] = encoding.ids
        return flat, lengths

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)


@register("tokenizer", "HFTokenizer")
class HFTokenizer(CompiledTokenizer):
    """A tokenizer.json as it is, its own special tokens included; truncation and padding stored in it are ignored."""

    def __init__(self, vocab_file: str | None):
        from tokenizers import Tokenizer

        vocab_file = require_file(vocab_file, "HFTokenizer", "vocab_file", KIND)
        try:
            tokenizer = Tokenizer.from_file(vocab_file)
        except Exception as error:  # the library raises bare Exceptions
            raise broken_file(vocab_file, KIND, error) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        super().__init__("HFTokenizer", tokenizer)
        found = [tokenizer.token_to_id(name) for name in END_OF_DOCUMENT_NAMES]
        self._eod_id = next((number for number in found if number is not None), None)
        self.pad_id = tokenizer.token_to_id(PADDING)
        self.wrapping = _wrapping(tokenizer)

    @classmethod
    def from_files(cls, vocab_file, merge_file):
        return cls(vocab_file)


def _wrapping(tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """Ids the file's post-processor puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []

"""SentencePiece models."""

from collections.abc import Sequence
from functools import cached_property

from megatron.common.optional import require
from megatron.registry import register
from megatron.tokenizer.abstract import END_OF_TEXT, AbstractTokenizer, broken_file, require_file

KIND = "a SentencePiece model (.model)"


@register("tokenizer", "SPMTokenizer")
class SentencePieceTokenizer(AbstractTokenizer):
    """A SentencePiece model file. The end of a document is <|endoftext|> if it is a piece, else the model's own EOS."""

    def __init__(self, vocab_file: str | None):
        super().__init__("SPMTokenizer")
        vocab_file = require_file(vocab_file, self.name, "vocab_file", KIND)
        sentencepiece = require("sentencepiece", "spm", "SPMTokenizer")
        try:
            self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        except (RuntimeError, OSError) as error:
            raise broken_file(vocab_file, KIND, error) from error
        self._eod_id = self._end_of_document()
        pad_id = self.tokenizer.pad_id()
        self.pad_id = pad_id if pad_id >= 0 else None

    def _end_of_document(self) -> int | None:
        number = self.tokenizer.piece_to_id(END_OF_TEXT)
        if number != self.tokenizer.unk_id():
            return number
        own = self.tokenizer.eos_id()
        return own if own >= 0 else None

    @classmethod
    def from_files(cls, vocab_file, merge_file):
        return cls(vocab_file)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_piece_size()

    @cached_property
    def vocab(self) -> dict[str, int]:
        return {self.tokenizer.id_to_piece(number): number for number in range(self.vocab_size)}

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # One thread: several preprocessing workers share the cores already.
        return self.tokenizer.encode(list(texts), num_threads=1) if texts else []

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(number) for number in token_ids])

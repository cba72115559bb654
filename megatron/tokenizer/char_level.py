"""Bytes as tokens: no vocabulary file, any text, reversible."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron.registry import register
from megatron.tokenizer.abstract import AbstractTokenizer

if TYPE_CHECKING:
    import numpy as np

BYTES = 256
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


@register("tokenizer", "CharLevelTokenizer")
class CharLevelTokenizer(AbstractTokenizer):
    """UTF-8 bytes are their own ids; 0 ends a document, 1 pads; ids from 256 on are unused.

    Args: vocab_size: number of ids, 512 in GPT-NeoX.
    """

    pad_id = 1

    def __init__(self, vocab_size: int = 512):
        super().__init__("CharLevelTokenizer")
        assert vocab_size >= BYTES, f"{BYTES} bytes do not fit into {vocab_size} ids"
        self._vocab_size = vocab_size
        self._eod_id = 0

    @classmethod
    def from_files(cls, vocab_file, merge_file):
        return cls()

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def vocab(self) -> dict[str, int]:
        return {_token(number): number for number in range(self._vocab_size)}

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def tokenize_flat(self, texts: Sequence[str]) -> tuple["np.ndarray", list[int]]:
        import numpy as np

        encoded = [text.encode("utf-8") for text in texts]
        flat = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.int32)
        return flat, [len(part) for part in encoded]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        raw = b"".join(bytes((number,)) if number < BYTES else REPLACEMENT for number in map(int, token_ids))
        return raw.decode("utf-8", errors="replace")


def _token(number: int) -> str:
    if number < 128:
        return chr(number)
    return f"<0x{number:02X}>" if number < BYTES else f"<unused{number}>"

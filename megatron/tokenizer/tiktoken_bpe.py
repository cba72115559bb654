"""tiktoken encodings, by name or from a downloaded .tiktoken file."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.common.errors import TokenizerError
from megatron.common.optional import require
from megatron.registry import register
from megatron.tokenizer.abstract import END_OF_TEXT, AbstractTokenizer, broken_file, require_file

if TYPE_CHECKING:
    import numpy as np

FILE_SUFFIX = ".tiktoken"
KIND = "a tiktoken vocabulary (base64 token and rank a line)"
_GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K_WORDS = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K_UPPER, _O200K_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_O200K_UPPER}*{_O200K_LOWER}+{_O200K_ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_O200K_UPPER}+{_O200K_LOWER}*{_O200K_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What a .tiktoken file does not hold: how text is cut into words, and the special tokens.
FILE_ENCODINGS: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": (_GPT2_WORDS, {END_OF_TEXT: 50256}),
    "p50k_base": (_GPT2_WORDS, {END_OF_TEXT: 50256}),
    "cl100k_base": (
        _CL100K_WORDS,
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": (_O200K_WORDS, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}


@register("tokenizer", "TiktokenTokenizer")
class TiktokenTokenizer(AbstractTokenizer):
    """A tiktoken encoding. Special tokens in a text become those tokens, in `tokenize` and `tokenize_batch` alike.

    Args: vocab_file: name of an encoding (fetched and cached by tiktoken in TIKTOKEN_CACHE_DIR), or the path of its
    downloaded file, whose name tells the encoding: cl100k_base.tiktoken.
    """

    def __init__(self, vocab_file: str | None):
        super().__init__("TiktokenTokenizer")
        if not vocab_file:
            raise TokenizerError(
                "TiktokenTokenizer needs vocab_file: the name of an encoding (cl100k_base) or a .tiktoken file"
            )
        require("tiktoken", "tiktoken", "TiktokenTokenizer")
        from_file = vocab_file.endswith(FILE_SUFFIX)
        self.tokenizer = _load_file(vocab_file) if from_file else _load_name(vocab_file)
        self._eod_id = self.tokenizer._special_tokens.get(END_OF_TEXT)

    @classmethod
    def from_files(cls, vocab_file, merge_file):
        return cls(vocab_file)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.n_vocab

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Bytes are written as in GPT-2's vocabulary files, one printable character each."""
        table = _printable_bytes()
        encoding = self.tokenizer
        named = {
            "".join(map(table.__getitem__, raw)): rank for raw, rank in encoding._mergeable_ranks.items()
        }
        return {**named, **encoding._special_tokens}

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, allowed_special="all")

    def tokenize_flat(self, texts: Sequence[str]) -> tuple["np.ndarray", list[int]]:
        import numpy as np

        parts = [self.tokenizer.encode_to_numpy(text, allowed_special="all") for text in texts]
        flat = np.concatenate(parts).astype(np.int32) if parts else np.empty(0, dtype=np.int32)
        return flat, [len(part) for part in parts]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(number) for number in token_ids], errors="replace")


def _load_name(name: str):
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        known = ", ".join(tiktoken.list_encoding_names())
        raise TokenizerError(
            f"unknown tiktoken encoding {name!r}: choose one of {known}, or a .tiktoken file"
        )
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # requests' errors, bad hashes, unreadable caches
        raise TokenizerError(
            f"tiktoken cannot fetch the encoding {name!r} ({type(error).__name__}): put its file into the folder "
            f"TIKTOKEN_CACHE_DIR names, or give the path of {name}{FILE_SUFFIX} as vocab_file"
        ) from error


def _load_file(path: str):
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    path = require_file(path, "TiktokenTokenizer", "vocab_file", KIND)
    name = Path(path).name[: -len(FILE_SUFFIX)]
    if name not in FILE_ENCODINGS:
        known = ", ".join(f"{known}{FILE_SUFFIX}" for known in FILE_ENCODINGS)
        raise TokenizerError(f"{path}: the file's name must tell the encoding, one of {known}")
    words, special = FILE_ENCODINGS[name]
    try:
        ranks = load_tiktoken_bpe(path)
    except Exception as error:  # ValueError of several kinds
        raise broken_file(path, KIND, error) from error
    return tiktoken.Encoding(name, pat_str=words, mergeable_ranks=ranks, special_tokens=special)


def _printable_bytes() -> dict[int, str]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in kept}
    others = (byte for byte in range(256) if byte not in table)
    return {**table, **{byte: chr(0x100 + place) for place, byte in enumerate(others)}}

"""What every tokenizer can do, and the checks of tokenizer files that all types share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.common.errors import TokenizerError

if TYPE_CHECKING:
    import numpy as np

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"


class AbstractTokenizer(ABC):
    """Text to token ids and back.

    Attributes: name: the type's name for messages; eod_id / eod: id that ends a document; pad_id: id that fills up
    batches, None if the vocabulary has none; wrapping: ids that `tokenize` puts before and after every text (a model
    whose tokenizer file adds BOS or EOS by itself).
    """

    pad_id: int | None = None
    wrapping: tuple[Sequence[int], Sequence[int]] = ((), ())

    def __init__(self, name: str):
        self.name = name
        self._eod_id: int | None = None

    @classmethod
    @abstractmethod
    def from_files(cls, vocab_file: str | None, merge_file: str | None) -> "AbstractTokenizer":
        """Build from the config's two file keys. Raises: TokenizerError for a missing or broken file."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, not padded."""

    @property
    @abstractmethod
    def vocab(self) -> dict[str, int]:
        """Token to id."""

    @cached_property
    def inv_vocab(self) -> dict[int, str]:
        """Id to token."""
        return {number: token for token, number in self.vocab.items()}

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; the text of a special token becomes that token."""

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, equal to `tokenize` of each."""
        return [self.tokenize(text) for text in texts]

    def tokenize_flat(self, texts: Sequence[str]) -> tuple["np.ndarray", list[int]]:
        """Ids of all texts one after the other as int32, and the number of ids of each text."""
        import numpy as np

        ids = self.tokenize_batch(texts)
        lengths = [len(part) for part in ids]
        flat = np.empty(sum(lengths), dtype=np.int32)
        end = 0
        for part in ids:
            start, end = end, end + len(part)
            flat[start:end] = part
        return flat, lengths

    @abstractmethod
    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, special tokens included; bytes that are not UTF-8 become U+FFFD."""

    @property
    def eod_id(self) -> int:
        """Id of the token that ends a document. Raises: TokenizerError if the vocabulary has none."""
        if self._eod_id is None:
            raise TokenizerError(
                f"the vocabulary of {self.name} has no end-of-document token: add {END_OF_TEXT!r} to the tokenizer"
            )
        return self._eod_id

    @property
    def eod(self) -> int:
        return self.eod_id

    @property
    def pad(self) -> int:
        if self.pad_id is None:
            raise self._missing("padding")
        return self.pad_id

    @property
    def cls(self) -> int:
        raise self._missing("CLS")

    @property
    def sep(self) -> int:
        raise self._missing("SEP")

    @property
    def mask(self) -> int:
        raise self._missing("MASK")

    def _missing(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"the tokenizer {self.name} has no {what} token")


def require_file(path: str | None, tokenizer: str, key: str, what: str) -> str:
    """The path of an existing, non-empty tokenizer file.

    Args: key: config key that names the file; what: what the file holds, for the message.
    Raises: TokenizerError naming the key or the file.
    """
    option = "--" + key.replace("_", "-")
    if not path:
        raise TokenizerError(f"{tokenizer} needs {key} ({what}): set {key} in the config, or {option}")
    file = Path(path)
    if not file.is_file():
        state = "is not a file" if file.exists() else "does not exist"
        raise TokenizerError(f"{key} {path} {state}: {tokenizer} needs {what}; correct {key} or {option}")
    if file.stat().st_size == 0:
        raise TokenizerError(f"{key} {path} is empty: {tokenizer} needs {what}")
    return str(path)


def broken_file(path: str, what: str, error: BaseException) -> TokenizerError:
    """The one-line error of a tokenizer file that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return TokenizerError(f"{path} is not {what}: {reason}")

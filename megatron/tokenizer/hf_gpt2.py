"""GPT-2's tokenizer as `transformers` loads it, from a folder or by name."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from megatron.common.errors import TokenizerError
from megatron.common.optional import require
from megatron.registry import register
from megatron.tokenizer.abstract import PADDING, AbstractTokenizer

DEFAULT_NAME = "gpt2"
NO_LIMIT = 1 << 60


@register("tokenizer", "HFGPT2Tokenizer")
class HFGPT2Tokenizer(AbstractTokenizer):
    """GPT-2's vocabulary plus a padding token.

    Args: vocab_file: a folder with the tokenizer's files or a name of the Hugging Face hub (None: "gpt2");
    fast: the compiled implementation; transformers 5 has no other one and takes either.
    Raises: TokenizerError if nothing can be loaded; MissingPackageError without transformers.
    """

    def __init__(self, vocab_file: str | None = None, fast: bool = True):
        super().__init__("HFGPT2Tokenizer")
        source = vocab_file or DEFAULT_NAME
        self.tokenizer = _load(source, "GPT2TokenizerFast" if fast else "GPT2Tokenizer")
        self.tokenizer.model_max_length = NO_LIMIT  # documents may be longer than the model's context
        self.tokenizer.add_special_tokens({"pad_token": PADDING})
        self._eod_id = self.tokenizer.eos_token_id
        self.pad_id = self.tokenizer.pad_token_id

    @classmethod
    def from_files(cls, vocab_file, merge_file):
        return cls(vocab_file)

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def vocab(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), return_attention_mask=False)["input_ids"] if texts else []

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)


def _load(source: str, kind: str):
    transformers = require("transformers", "hf", "HFGPT2Tokenizer")
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(source)
    except Exception as error:  # hub, network and file errors of several libraries
        raise _not_loaded(source, " ".join(str(error).split())[:200]) from error
    # transformers makes an empty tokenizer out of nothing, without an error.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise _not_loaded(source, "there is no vocab.json with merges.txt, and no tokenizer.json")
    return tokenizer


def _not_loaded(source: str, reason: str) -> TokenizerError:
    place = "a folder, but" if Path(source).is_dir() else "no folder here, asked of the Hugging Face hub:"
    return TokenizerError(
        f"HFGPT2Tokenizer cannot load {source!r} ({place} {reason}); set vocab_file to a folder with the tokenizer"
    )

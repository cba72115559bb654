"""Prompts in: files of prompts, and text that grows token by token."""

from pathlib import Path

from megatron.common.errors import DataError

UNFINISHED = "\ufffd"  # what a tokenizer shows for a character of which bytes are still missing


def read_prompts(path: str | Path, prompt_end: str) -> list[str]:
    """The prompts of a UTF-8 file, separated by `prompt_end`, stripped; empty ones are left out.

    Raises: DataError when the file cannot be read or has no prompt.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"sample_input_file={path} cannot be read as UTF-8 text: {reason}") from error
    prompts = [prompt.strip() for prompt in text.split(prompt_end)]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise DataError(f"sample_input_file={path} has no prompt in it (separator {prompt_end!r})")
    return prompts


class TextStream:
    """Text of a growing list of tokens, handed out as soon as its characters are complete.

    Args: tokenizer: has detokenize(ids) -> str.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Decoding starts a little before the new tokens, because a token's text can depend on its neighbours.
        self._context = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """Add a token; returns the characters that have become complete."""
        self._tokens.append(token)
        text = self._pending()
        if not text or text.endswith(UNFINISHED):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return text

    def rest(self) -> str:
        """What is left at the end, complete or not."""
        text = self._pending()
        self._context = self._shown = len(self._tokens)
        return text

    def _pending(self) -> str:
        before = self._tokenizer.detokenize(self._tokens[self._context : self._shown])
        return self._tokenizer.detokenize(self._tokens[self._context :])[len(before) :]

"""Requests of the harness as token ids: what goes into the model and which tokens are looked for behind it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from megatron.common.errors import DataError


class Question(NamedTuple):
    """How likely are `targets`, each after all that stands before it?

    Attributes: inputs: n token ids; targets: m <= n ids, that follow the last m positions of `inputs`.
    """

    inputs: list[int]
    targets: list[int]


class TextCoder:
    """Texts to ids as the harness wants them: what a tokenizer adds before a text is kept once, what it adds behind is
    not (a text that is to be continued has not ended).

    Args: tokenizer: AbstractTokenizer; max_length: tokens that the model takes.
    Attributes: prefix: id that stands before a text without a context.
    """

    def __init__(self, tokenizer, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length
        self._before, self._after = (list(ids) for ids in tokenizer.wrapping)
        self.prefix: int = self._before[0] if self._before else tokenizer.eod
        self._prefix_text = tokenizer.detokenize(self._before) if self._before else ""

    def encode(self, texts: Sequence[str], bare: bool = False) -> list[list[int]]:
        """Ids of each text; with `bare` without what the tokenizer adds before it."""
        found = self.tokenizer.tokenize_batch(texts)
        if self._after:
            found = [ids[: -len(self._after)] for ids in found]
        if not self._before:
            return found
        return [
            # A chat template may have written the mark already.
            ids[len(self._before) :] if bare or text.startswith(self._prefix_text) else ids
            for text, ids in zip(texts, found, strict=True)
        ]

    def encode_all(self, texts: Iterable[str], bare: bool = False) -> dict[str, list[int]]:
        """Ids by text; a text that occurs often is looked at once."""
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, self.encode(distinct, bare), strict=True))

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Question]:
        """Questions of (context, continuation).

        A continuation is what the ids of both together have beyond those of the context alone, with the blanks at the
        context's end: tokens begin with a blank more often than they end with one. Contexts too long for the model lose
        their beginning.

        Raises: DataError for a continuation that is longer than the model's sequence.
        """
        moved = [_blanks_moved(context, continuation) for context, continuation in pairs]
        bare = self.encode_all((continuation for context, continuation in moved if not context), bare=True)
        known = self.encode_all(
            text for context, rest in moved if context for text in (context, context + rest)
        )
        questions = []
        for context, continuation in moved:
            if context:
                whole, length = known[context + continuation], len(known[context])
            else:
                # The mark is not asked for twice.
                ids = bare[continuation]
                whole, length = (ids if ids[:1] == [self.prefix] else [self.prefix, *ids]), 1
            questions.append(self._question(whole, length))
        return questions

    def _question(self, whole: list[int], context: int) -> Question:
        # Where a token holds the end of the context and the whole continuation, that token is asked for.
        targets = whole[context:] or whole[-1:]
        if len(targets) > self.max_length:
            raise DataError(
                f"a continuation of {len(targets)} tokens does not fit into seq_length={self.max_length}: "
                "leave this task out of eval_tasks"
            )
        if len(whole) < 2:
            whole = [self.prefix, *whole]
        return Question(whole[-self.max_length - 1 : -1], targets)

    def windows(self, text: str) -> list[Question]:
        """A whole text, in pieces that the model can take. Every token is asked for once, with as many tokens before it
        as fit; the first with the prefix alone."""
        (ids,) = self.encode([text])
        whole = [self.prefix, *ids]
        questions = []
        for first in range(0, len(ids), self.max_length):
            end = min(first + self.max_length, len(ids))
            questions.append(Question(whole[max(0, end - self.max_length) : end], ids[first:end]))
        return questions


def _blanks_moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation

"""Long texts in pieces that tokenise to the ids of the whole.

Memory of a tokenizer grows with the text it is given, a hundred bytes and more per token, so a book-sized dump in one
document must be cut. Where a cut leaves the ids as they are depends on the tokenizer: it is asked, on samples, before
the first cut.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from megatron.tokenizer.abstract import AbstractTokenizer

PIECE_BYTES = 512 << 10
# Without any place to cut, a piece grows to this size and is then cut between two characters, whatever it costs.
LARGEST_PIECE_BYTES = 8 * PIECE_BYTES

# One character that is no white space of any kind, as UTF-8 (U+0080-00BF, U+1000-2FFF and U+F000-FFFF are left out).
_BEYOND_3000 = rb"\xE3(?:\x80[\x81-\xBF]|[\x81-\xBF][\x80-\xBF])"
_SOLID = rb"(?:[!-~]|[\xC3-\xDF][\x80-\xBF]|%s|[\xE4-\xED][\x80-\xBF]{2}|\xF0[\x80-\xBF]{3})" % _BEYOND_3000
_SOLID_START = rb"(?:[A-Za-z]|[\xC3-\xDF]|%s|[\xE4-\xED]|\xF0)" % _BEYOND_3000
_SAMPLES = [
    ("The quick brown", "fox jumps over it"),
    ("return value", "def main"),
    ("x a", "b y"),
    ("Some text.\nThen more", "Words 42 follow"),
]
_LINE_SAMPLES = [
    *_SAMPLES,
    ("end of a line.", "Next one"),
    ("see (it)", "b = 2"),
    ("день, ночь", "中文"),
    ("日本。", "ёж"),
]


class CutRule(NamedTuple):
    """A kind of place to cut: `pattern` matches around it, group 1 is what separates the two sides.

    `keep`: the side the separator stays with, "left", "right" or "none".
    """

    pattern: re.Pattern
    separator: str
    keep: str
    samples: list[tuple[str, str]]

    def sides(self, match: re.Match) -> tuple[int, int]:
        """End of the left side and start of the right one."""
        start, end = match.span(1)
        return (end if self.keep == "left" else start), (start if self.keep == "right" else end)


_BETWEEN_WORDS = re.compile(rb"(?<=[A-Za-z])( )(?=[A-Za-z])")
_BETWEEN_LINES = re.compile(rb"%s(\n)(?=%s)" % (_SOLID, _SOLID_START))
RULES = [
    CutRule(_BETWEEN_WORDS, " ", "right", _SAMPLES),
    CutRule(_BETWEEN_LINES, "\n", "left", _LINE_SAMPLES),
    CutRule(_BETWEEN_WORDS, " ", "none", _SAMPLES),
]


class TextCutter:
    """Finds places in UTF-8 text where a cut does not change the ids.

    Args: tokenizer: asked which rules hold for it; None takes every line end.
    """

    def __init__(self, tokenizer: AbstractTokenizer | None = None, piece_bytes: int = PIECE_BYTES):
        self.piece_bytes = piece_bytes
        self.largest = piece_bytes * (LARGEST_PIECE_BYTES // PIECE_BYTES)
        self.rules = [RULES[1]] if tokenizer is None else [rule for rule in RULES if _holds(rule, tokenizer)]

    def __call__(self, text: bytes | bytearray) -> tuple[int, int] | None:
        """(end of the first piece, start of the rest), or None if more text should be waited for.

        Texts of up to `piece_bytes` are never cut.
        """
        if len(text) <= self.piece_bytes:
            return None
        window = max(self.piece_bytes >> 3, 64)
        for start, end in ((self.piece_bytes - window, self.piece_bytes), (0, self.piece_bytes)):
            found = [last for rule in self.rules if (last := _last(rule, text, start, end)) is not None]
            if found:
                return max(found)
        found = [
            rule.sides(match)
            for rule in self.rules
            if (match := rule.pattern.search(text, self.piece_bytes - 4, self.largest))
        ]
        if found:
            return min(found)
        return _between_characters(text, self.largest) if len(text) >= self.largest + 4 else None

    def split(self, text: str) -> list[str]:
        """The pieces of a text; one, the text itself, unless it is longer than a piece."""
        if len(text) * 4 <= self.piece_bytes:
            return [text]
        step = self.piece_bytes
        return list(self.split_parts(text[place : place + step] for place in range(0, len(text), step)))

    def split_parts(self, parts: Iterable[str]) -> Iterator[str]:
        """The pieces of a text that comes in parts; at least one."""
        pending = bytearray()
        for part in parts:
            pending += part.encode("utf-8")
            while (cut := self(pending)) is not None:
                yield pending[: cut[0]].decode("utf-8")
                del pending[: cut[1]]
        yield pending.decode("utf-8")


def strip_wrapping(tokenizer: AbstractTokenizer, begins: bool, ends: bool) -> tuple[int, int]:
    """How many ids to drop before and after a piece: a tokenizer's own BOS and EOS belong to whole texts only."""
    before, after = tokenizer.wrapping
    return (0 if begins else len(before)), (0 if ends else len(after))


def _last(rule: CutRule, text: bytes | bytearray, start: int, end: int) -> tuple[int, int] | None:
    sides = None
    for match in rule.pattern.finditer(text, start, end):
        sides = rule.sides(match)
    return sides


def _between_characters(text: bytes | bytearray, place: int) -> tuple[int, int]:
    while 0x80 <= text[place] < 0xC0:  # inside a character
        place -= 1
    return place, place


def _holds(rule: CutRule, tokenizer: AbstractTokenizer) -> bool:
    for left, right in rule.samples:
        whole = tokenizer.tokenize(left + rule.separator + right)
        left = left + rule.separator if rule.keep == "left" else left
        right = rule.separator + right if rule.keep == "right" else right
        _, drop_after = strip_wrapping(tokenizer, begins=True, ends=False)
        drop_before, _ = strip_wrapping(tokenizer, begins=False, ends=True)
        first, second = tokenizer.tokenize(left), tokenizer.tokenize(right)
        if whole != first[: len(first) - drop_after] + second[drop_before:]:
            return False
    return True

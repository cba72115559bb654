"""JSON arrays read element by element."""

import codecs
import json
from collections.abc import Iterator

from megatron.common.errors import DataError

# A parser that stops this close to the end of what has been read may only lack the rest of the element.
NEAR_END = 64


def array_elements(chunks: Iterator[bytes], source: str) -> Iterator[bytes]:
    """The JSON text of each element of an array as one line.

    Raises: DataError naming the element where the array breaks off.
    """
    buffer = _Buffer(chunks, source)
    buffer.expect("[")
    number = 0
    while not (number == 0 and buffer.peek() == "]"):
        number += 1
        # A line end inside an element is white space, for a text writes it as an escape.
        yield buffer.element(number).replace("\n", " ").encode("utf-8") + b"\n"
        if buffer.peek() != ",":
            break
        buffer.expect(",")
    buffer.expect("]")


class _Buffer:
    def __init__(self, chunks: Iterator[bytes], source: str):
        self.source = source
        self._chunks = chunks
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._place = 0

    def _grow(self) -> bool:
        """Read at least as much as is there already; False at the end of the file."""
        text, wanted = self._text[self._place :], len(self._text) - self._place
        parts, size = [text], 0
        while size <= wanted and (chunk := next(self._chunks, b"")):
            try:
                parts.append(self._decoder.decode(chunk))
            except UnicodeDecodeError as error:
                raise DataError(f"{self.source} is not UTF-8 text; convert the file") from error
            size += len(parts[-1])
        self._text, self._place = "".join(parts), 0
        return size > 0

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            while self._place < len(self._text):
                if not self._text[self._place].isspace():
                    return self._text[self._place]
                self._place += 1
            if not self._grow():
                return ""

    def expect(self, character: str) -> None:
        if (found := self.peek()) != character:
            raise DataError(
                f"{self.source}: the JSON array is broken, {character!r} expected and {found!r} found"
            )
        self._place += 1

    def element(self, number: int) -> str:
        self.peek()
        while True:
            try:
                _, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - NEAR_END
                if unfinished and self._grow():
                    continue
                raise DataError(f"{self.source}, element {number}: not valid JSON ({error.msg})") from error
            text, self._place = self._text[self._place : end], end
            return text

"""JSON records of many megabytes, decoded a part at a time.

Parsed at once, a record of 100 MB becomes text of up to four bytes a character, twice. Here only its outline is found;
the text of a field stays in the record's own bytes and is decoded part by part when it is read.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

LONG_RECORD_BYTES = 8 << 20
PART_BYTES = 256 << 10
_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb"[^,}\]\s]+")
_STRUCTURE = re.compile(rb'["\[\]{}]')
# Whole characters and escapes; group 1 is an escape that may be the first half of a pair.
_WHOLE = re.compile(rb"(?:[^\\]+|(\\u[dD][89abAB][0-9a-fA-F]{2})|\\u[0-9a-fA-F]{4}|\\[^u])*")


class LongText:
    """The text of one JSON string in a buffer: `data[start:end]`, the quotes not included.

    Raises: ValueError if it is not valid; it is read through once for that.
    """

    def __init__(self, data: bytes, start: int, end: int):
        self.data, self.start, self.end = data, start, end
        self.length = sum(map(len, self.parts()))

    def __len__(self) -> int:
        return self.length

    def __str__(self) -> str:
        return "".join(self.parts())

    def parts(self) -> Iterator[str]:
        """The text in parts of bounded size."""
        place = self.start
        while place < self.end:
            stop = min(place + PART_BYTES, self.end)
            if stop < self.end:
                stop = self._whole(place, stop)
            text = json.loads(b'"%s"' % self.data[place:stop])
            yield text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            place = stop

    def _whole(self, start: int, stop: int) -> int:
        """The last place up to `stop` that is not inside a character, an escape or a pair of escapes."""
        found = _WHOLE.match(self.data, start, stop)
        assert found is not None, "the pattern matches the empty text"
        end = found.start(1) if found.end(1) == found.end() else found.end()
        while end > start and 0x80 <= self.data[end] < 0xC0:
            end -= 1
        return end if end > start else stop  # no whole character: the parser says what is wrong


def read_long_record(data: bytes, keys: list[str]) -> dict[str, Any]:
    """The wanted fields of a JSON object: texts as LongText, other values parsed.

    All field names are in the result; values of others are None. Raises: ValueError if it is not an object.
    """
    place = _skip_space(data, 0)
    if data[place : place + 1] != b"{":
        raise ValueError("a JSON object was expected")
    record: dict[str, Any] = {}
    place = _skip_space(data, place + 1)
    while data[place : place + 1] != b"}":
        if record:
            place = _expect(data, place, b",")
        name_end = _string_end(data, _expect(data, place, b'"', skip=False))
        name = json.loads(data[place:name_end])
        place = _expect(data, _skip_space(data, name_end), b":")
        end = _value_end(data, place)
        if name not in keys:
            json.loads(data[place:end])
            record[name] = None
        elif data[place : place + 1] == b'"':
            record[name] = LongText(data, place + 1, end - 1)
        else:
            record[name] = json.loads(data[place:end])
        place = _skip_space(data, end)
    if _skip_space(data, place + 1) != len(data):
        raise ValueError(f"not valid JSON (more text after the object, at column {place + 2})")
    return record


def _skip_space(data: bytes, place: int) -> int:
    found = _SPACE.match(data, place)
    assert found is not None, "the pattern matches the empty text"
    return found.end()


def _expect(data: bytes, place: int, character: bytes, skip: bool = True) -> int:
    if data[place : place + 1] != character:
        raise ValueError(f"not valid JSON ({character.decode()!r} expected at column {place + 1})")
    return _skip_space(data, place + 1) if skip else place + 1


def _string_end(data: bytes, place: int) -> int:
    """Where a string ends whose text starts at `place`, its quote included."""
    while (quote := data.find(b'"', place)) >= 0:
        first = quote
        while data[first - 1] == ord("\\"):
            first -= 1
        if (quote - first) % 2 == 0:
            return quote + 1
        place = quote + 1
    raise ValueError("not valid JSON (a text is not closed)")


def _value_end(data: bytes, place: int) -> int:
    start = data[place : place + 1]
    if start == b'"':
        return _string_end(data, place + 1)
    if start not in (b"{", b"["):
        scalar = _SCALAR.match(data, place)
        if scalar is None:
            raise ValueError(f"not valid JSON (a value expected at column {place + 1})")
        return scalar.end()
    depth = 0
    while (found := _STRUCTURE.search(data, place)) is not None:
        place = found.end()
        if found[0] == b'"':
            place = _string_end(data, place)
        else:
            depth += 1 if found[0] in b"[{" else -1
            if depth == 0:
                return place
    raise ValueError("not valid JSON (an array or object is not closed)")

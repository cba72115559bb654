"""Blocks of documents: cheap to cut from a file, cheap to send to a worker, parsed where they are used."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron.common.documents.long_records import LONG_RECORD_BYTES, LongText, read_long_record
from megatron.common.errors import DataError

BLOCK_BYTES = 512 << 10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SKIP_HINT = "correct the file, or leave such records out (preprocess_data.py --skip-invalid)"

# (end of a piece, start of the rest) of a text that goes on, None to wait for more of it
Cutter = Callable[[bytearray], tuple[int, int] | None]


class Texts(NamedTuple):
    """rows: per document one text per key, a LongText where it is huge; skipped: number of invalid records left out."""

    rows: list[list[str | LongText]]
    skipped: int = 0


@dataclass(frozen=True)
class Block:
    """Some documents of one source.

    Attributes: source: file, and member of an archive, for messages; consumed: bytes of the input files read so far;
    begins, ends: whether the first document starts and the last one ends in this block.
    """

    source: str
    consumed: int
    begins: bool = field(default=True, kw_only=True)
    ends: bool = field(default=True, kw_only=True)

    def texts(self, keys: Sequence[str], skip_invalid: bool = False) -> Texts:
        """The texts of the block.

        Args: keys: fields to take from each record; plain text knows one key only.
        Raises: DataError naming source and line of the first invalid record, unless `skip_invalid`.
        """
        raise NotImplementedError

    def _plain(self, keys: Sequence[str]) -> None:
        if len(keys) != 1:
            raise DataError(
                f"{self.source} holds plain text, not records with fields: give one key instead of {', '.join(keys)}"
            )


@dataclass(frozen=True)
class RecordBlock(Block):
    """JSON records, one a line. `first`: number of the first one; `unit`: what is counted ("line" or "element").

    A bare JSON string is a document of its own where records are elements of an array.
    """

    data: bytes
    first: int = 1
    unit: str = "line"

    def texts(self, keys: Sequence[str], skip_invalid: bool = False) -> Texts:
        if len(self.data) > LONG_RECORD_BYTES:
            lines: Iterable[str | bytes] = _split(self.data)
        else:
            try:
                lines = self.data.decode("utf-8").split("\n")
            except UnicodeDecodeError:  # which line it is comes out below
                lines = self.data.split(b"\n")
        rows, skipped = [], 0
        for number, line in enumerate(lines, self.first):
            if not line or line.isspace():
                continue
            try:
                rows.append(self._row(line, keys))
            except ValueError as error:
                if not skip_invalid:
                    raise DataError(
                        f"{self.source}, {self.unit} {number}: {_reason(error)}; {SKIP_HINT}"
                    ) from error
                skipped += 1
        return Texts(rows, skipped)

    def _row(self, line: str | bytes, keys: Sequence[str]) -> list[str | LongText]:
        if isinstance(line, bytes):
            if len(line) > LONG_RECORD_BYTES and line.lstrip()[:1] == b"{":
                return [_field(read_long_record(line, list(keys)), key) for key in keys]
            line = line.decode("utf-8")
        record = json.loads(line)
        if isinstance(record, str) and self.unit == "element" and len(keys) == 1:
            row: list[str | LongText] = [record]
        elif isinstance(record, dict):
            row = [_field(record, key) for key in keys]
        else:
            raise ValueError(f"a JSON object was expected, not {type(record).__name__}")
        # Only an escape can bring half of a surrogate pair into a text that came as UTF-8.
        return [_without_surrogates(str(text)) for text in row] if "\\ud" in line.lower() else row


@dataclass(frozen=True)
class LineBlock(Block):
    """Plain text, one document a line."""

    data: bytes
    first: int = 1

    def texts(self, keys: Sequence[str], skip_invalid: bool = False) -> Texts:
        self._plain(keys)
        text = _decode(self.data, f"{self.source}, from line {self.first}", skip_invalid)
        return Texts([[line] for line in (raw.removesuffix("\r") for raw in text.split("\n")) if line])


@dataclass(frozen=True)
class TextBlock(Block):
    """Whole documents of plain text, or one piece of a large one: [(name, UTF-8 text)]."""

    documents: list[tuple[str, bytes]]

    def texts(self, keys: Sequence[str], skip_invalid: bool = False) -> Texts:
        self._plain(keys)
        return Texts([[_decode(data, name, skip_invalid)] for name, data in self.documents])


def line_blocks(
    chunks: Iterable[bytes], source: str, kind: Callable[..., Block], position: Callable[[], int]
) -> Iterator[Block]:
    """Blocks of whole lines. Where they end depends on the bytes alone, not on how they came in chunks."""
    pending, searched, first = bytearray(), 0, 1
    for chunk in _without_mark(chunks):
        pending += chunk
        while (end := pending.find(b"\n", max(BLOCK_BYTES - 1, searched)) + 1) > 0:
            with memoryview(pending) as view:
                data = bytes(view[:end])
            del pending[:end]
            searched = 0
            yield kind(source, position(), data=data, first=first)
            first += data.count(b"\n")
            del data  # not held while the next block is gathered
        searched = len(pending)
    if pending:
        yield kind(source, position(), data=bytes(pending), first=first)


class TextBatcher:
    """Gathers small documents into blocks and cuts large ones into pieces."""

    def __init__(self, source: str, cutter: Cutter, position: Callable[[], int]):
        self.source, self.cutter, self.position = source, cutter, position
        self._documents: list[tuple[str, bytes]] = []
        self._size = 0

    def add(self, name: str, chunks: Iterable[bytes]) -> Iterator[TextBlock]:
        """Take one document; yields what is complete."""
        text, begins = bytearray(), True
        for chunk in _without_mark(chunks):
            text += chunk
            while (cut := self.cutter(text)) is not None:
                yield from self.flush()
                yield self._piece(name, bytes(text[: cut[0]]), begins, False)
                del text[: cut[1]]
                begins = False
        if not begins:
            yield self._piece(name, bytes(text), False, True)
        elif text:
            self._documents.append((name, bytes(text)))
            self._size += len(text)
            if self._size >= BLOCK_BYTES:
                yield from self.flush()

    def flush(self) -> Iterator[TextBlock]:
        """Yield what has been gathered so far."""
        if self._documents:
            yield TextBlock(self.source, self.position(), self._documents)
            self._documents, self._size = [], 0

    def _piece(self, name: str, data: bytes, begins: bool, ends: bool) -> TextBlock:
        return TextBlock(self.source, self.position(), [(name, data)], begins=begins, ends=ends)


def _without_mark(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for number, chunk in enumerate(chunks):
        yield chunk.removeprefix(BYTE_ORDER_MARK) if number == 0 else chunk


def _split(data: bytes) -> Iterator[bytes]:
    """Lines one at a time, so that a huge one is copied once."""
    place = 0
    while place < len(data):
        end = data.find(b"\n", place)
        end = len(data) if end < 0 else end
        yield data[place:end]
        place = end + 1


def _field(record: dict, key: str) -> str | LongText:
    if key not in record:
        raise ValueError(
            f"the record has no field {key!r} (its fields: {', '.join(map(str, record)) or 'none'})"
        )
    value = record[key]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n\n".join(value)
    if not isinstance(value, str | LongText):
        raise ValueError(f"field {key!r} holds neither a text nor a list of texts but {type(value).__name__}")
    return value


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decode(data: bytes, where: str, replace: bool) -> str:
    try:
        return data.decode("utf-8", "replace" if replace else "strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text (byte 0x{data[error.start]:02x} at {error.start}); convert the file, or have such"
            " bytes replaced (preprocess_data.py --skip-invalid)"
        ) from error


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return str(error)

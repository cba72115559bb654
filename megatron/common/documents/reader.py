"""From input paths to blocks of documents."""

import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from megatron.common.documents.arrays import array_elements
from megatron.common.documents.blocks import (
    BLOCK_BYTES,
    Block,
    Cutter,
    LineBlock,
    RecordBlock,
    TextBatcher,
    line_blocks,
)
from megatron.common.documents.formats import FORMATS, Format, damaged, format_of, stream
from megatron.common.errors import DataError

DAT_LENGTH_DIGITS = 16


def find_inputs(inputs: str | Sequence[str | Path]) -> list[Path]:
    """The files of comma separated paths, in order; a folder stands for all files below it with a known suffix.

    Raises: DataError for a path that does not exist, a folder without known files, a file of unknown suffix.
    """
    paths = (
        [part.strip() for part in inputs.split(",")] if isinstance(inputs, str) else list(map(str, inputs))
    )
    files: list[Path] = []
    for path in map(Path, filter(None, paths)):
        if path.is_dir():
            files += _known_files(path)
        elif not path.exists():
            raise DataError(f"input {path} does not exist")
        elif format_of(path.name) is None:
            raise DataError(
                f"input {path} is of no known kind: its name must end in one of {', '.join(FORMATS)}"
            )
        else:
            files.append(path)
    if not files:
        raise DataError("no input was given")
    return files


def read_blocks(files: Iterable[Path], cutter: Cutter) -> Iterator[Block]:
    """Blocks of all documents of the files, in order.

    Args: cutter: finds places to cut large plain-text documents (megatron.tokenizer.splitting.TextCutter).
    Raises: DataError naming the file that cannot be read.
    """
    finished = 0
    for path in files:
        try:
            with open(path, "rb") as file:
                reader = _Reader(cutter, file, finished)
                yield from reader.blocks(str(path), file, format_of(path.name) or Format("text"))
                finished += file.seek(0, os.SEEK_END)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def read_documents(files: Iterable[Path], key: str = "text", skip_invalid: bool = False) -> Iterator[str]:
    """The texts of all documents; large plain-text documents come in pieces cut at line ends."""
    for block in read_blocks(files, _at_line_end):
        for row in block.texts([key], skip_invalid).rows:
            yield str(row[0])


def _at_line_end(text: bytearray) -> tuple[int, int] | None:
    end = text.rfind(b"\n", 0, BLOCK_BYTES) + 1 if len(text) > BLOCK_BYTES else 0
    return (end, end) if end else None


def _known_files(folder: Path) -> list[Path]:
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file())
    visible = [
        path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    known = [path for path in visible if format_of(path.name)]
    if not known:
        raise DataError(f"no file in {folder} has a known suffix ({', '.join(FORMATS)})")
    return known


class _Reader:
    """Reads one input file, descending into archives."""

    def __init__(self, cutter: Cutter, file: IO[bytes], finished: int):
        self.cutter = cutter
        self.position: Callable[[], int] = lambda: finished + file.tell()

    def blocks(self, source: str, file: IO[bytes], kind: Format) -> Iterator[Block]:
        if kind.content in ("tar", "zip"):
            yield from self._archive(source, file, kind)
            return
        chunks = stream(file, kind.compression, source)
        if kind.content == "text":
            yield from self._texts(source, [(source, chunks)])
        elif kind.content == "dat":
            yield from self._texts(source, _dat_documents(chunks, source))
        elif kind.content == "lines":
            yield from line_blocks(chunks, source, LineBlock, self.position)
        else:
            yield from self._records(source, chunks, may_be_array=kind.content == "json")

    def _records(self, source: str, chunks: Iterator[bytes], may_be_array: bool) -> Iterator[Block]:
        first = next(chunks, b"")
        rest = _chain(first, chunks)
        if may_be_array and first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            element = partial(RecordBlock, unit="element")
            yield from line_blocks(array_elements(rest, source), source, element, self.position)
        else:
            yield from line_blocks(rest, source, RecordBlock, self.position)

    def _texts(self, source: str, documents: Iterable[tuple[str, Iterator[bytes]]]) -> Iterator[Block]:
        batcher = TextBatcher(source, self.cutter, self.position)
        for name, chunks in documents:
            yield from batcher.add(name, chunks)
        yield from batcher.flush()

    def _archive(self, source: str, file: IO[bytes], kind: Format) -> Iterator[Block]:
        batcher = TextBatcher(source, self.cutter, self.position)
        members = _zip_members if kind.content == "zip" else _tar_members
        try:
            for name, opened in members(file, kind.compression):
                where, content = f"{source}:{name}", format_of(name)
                if content is None or content.content == "text":
                    yield from batcher.add(where, stream(opened, "", where))
                else:
                    yield from batcher.flush()
                    yield from self.blocks(where, opened, content)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise damaged(source, error) from error
        yield from batcher.flush()


def _tar_members(file: IO[bytes], compression: str) -> Iterator[tuple[str, IO[bytes]]]:
    # gzip here and not in tarfile, which takes a truncated stream for a whole one.
    source = gzip.GzipFile(fileobj=file) if compression else file
    with tarfile.open(fileobj=source, mode="r|" if compression else "r:") as archive:
        while (member := archive.next()) is not None:
            opened = archive.extractfile(member) if member.isfile() else None
            if opened is not None and not Path(member.name).name.startswith("."):
                yield member.name, opened
            archive.members = []  # type: ignore[attr-defined]  # else the list of millions of members stays in memory
        if not compression:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise EOFError("the archive ends in the middle of a header")


def _zip_members(file: IO[bytes], compression: str) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir() and not Path(member.filename).name.startswith("."):
                with archive.open(member) as opened:
                    yield member.filename, opened


def _dat_documents(chunks: Iterator[bytes], source: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Documents of lm_dataformat's "dat" files: 16 decimal digits with the length in bytes, then the text."""
    buffer = bytearray()
    number = 0
    while _fill(buffer, chunks, DAT_LENGTH_DIGITS):
        number += 1
        digits = bytes(buffer[:DAT_LENGTH_DIGITS])
        if len(digits) < DAT_LENGTH_DIGITS or not digits.isdigit():
            raise damaged(source, ValueError(f"document {number} does not start with its length"))
        del buffer[:DAT_LENGTH_DIGITS]
        yield f"{source}, document {number}", _take(buffer, chunks, int(digits), source)


def _fill(buffer: bytearray, chunks: Iterator[bytes], size: int) -> bool:
    while len(buffer) < size and (chunk := next(chunks, b"")):
        buffer += chunk
    return bool(buffer)


def _take(buffer: bytearray, chunks: Iterator[bytes], size: int, source: str) -> Iterator[bytes]:
    while size > 0:
        if not _fill(buffer, chunks, 1):
            raise damaged(source, EOFError("the last document is cut off"))
        part = bytes(buffer[:size])
        del buffer[: len(part)]
        size -= len(part)
        yield part


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest

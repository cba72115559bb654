"""What a file holds, told by its suffix, and the decompression of byte streams."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from megatron.common.errors import DataError

CHUNK_BYTES = 128 << 10


class Format(NamedTuple):
    """content: "lines of json", "json" (lines or one array), "lines", "text", "dat", "tar" or "zip"."""

    content: str
    compression: str = ""


# The first suffix that fits counts, so longer ones stand before their endings.
FORMATS = {
    ".jsonl.zst.tar": Format("tar"),
    ".jsonl.zst": Format("lines of json", "zst"),
    ".jsonl.gz": Format("lines of json", "gz"),
    ".jsonl": Format("lines of json"),
    ".json.zst": Format("json", "zst"),
    ".json.gz": Format("json", "gz"),
    ".json": Format("json"),
    ".dat.zst": Format("dat", "zst"),
    ".tar.gz": Format("tar", "gz"),
    ".tgz": Format("tar", "gz"),
    ".tar": Format("tar"),
    ".zip": Format("zip"),
    ".txt": Format("text"),
    ".gz": Format("lines", "gz"),
}


def format_of(name: str) -> Format | None:
    """The format of a file name, None if its suffix says nothing."""
    lowered = name.lower()
    return next((kind for suffix, kind in FORMATS.items() if lowered.endswith(suffix)), None)


def stream(file: IO[bytes], compression: str, source: str) -> Iterator[bytes]:
    """The decompressed bytes of a file in chunks.

    Raises: DataError naming `source` if the file is damaged or ends too early.
    """
    if compression == "zst":
        return _zstd_chunks(file, source)
    if compression == "gz":
        opened = gzip.GzipFile(fileobj=file)
        return _chunks(opened.read, source)
    return _chunks(file.read, source)


def _chunks(read: Callable[[int], bytes], source: str) -> Iterator[bytes]:
    try:
        while chunk := read(CHUNK_BYTES):
            yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(source, error) from error


def _zstd_chunks(file: IO[bytes], source: str) -> Iterator[bytes]:
    import zstandard

    # The library's stream reader takes a truncated file for a whole one, so the frames are followed here.
    frame = None
    try:
        while raw := file.read(CHUNK_BYTES):
            while raw:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                chunk = frame.decompress(raw)
                if chunk:
                    yield chunk
                raw = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise damaged(source, error) from error
    if frame is not None:
        raise damaged(source, EOFError("the file ends in the middle of a compressed frame"))


def damaged(source: str, error: BaseException) -> DataError:
    """The one-line error of a compressed file or archive that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{source} is damaged or not what its name says ({reason}): fetch or make it again")

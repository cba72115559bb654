"""Downloads that go on where they stopped and only ever appear whole."""

import hashlib
import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.common.console import Progress, info, warn
from megatron.common.errors import DataError
from megatron.common.files import atomic_write_text, fsync_directory, fsync_file

ATTEMPTS = 6
TIMEOUT_SECONDS = 60.0
CHUNK_BYTES = 1 << 20
LONGEST_WAIT_SECONDS = 30.0
SCHEMES = ("http://", "https://", "file://")
TOO_MANY_REQUESTS, RANGE_NOT_SATISFIABLE, PARTIAL_CONTENT = 429, 416, 206


def fetch(
    url: str, path: str | Path, sha256: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Download a URL to a file.

    The bytes go to PATH.part, which a later call completes (HTTP Range) as long as the server's file is the same; PATH
    itself appears when everything is there and, where a checksum is given, right. Lost connections are tried again.
    Raises: DataError naming URL and reason.
    """
    path = Path(path)
    if not url.startswith(SCHEMES):
        raise DataError(f"cannot download {url}: the address must start with one of {', '.join(SCHEMES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    download = _Download(url, path)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            download.run()
            break
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS or not _passing(error):
                raise DataError(f"cannot download {url}: {_reason(error)}") from error
            if isinstance(error, urllib.error.HTTPError) and error.code == RANGE_NOT_SATISFIABLE:
                download.forget()  # the server's file has changed
            wait = min(2.0 ** (attempt - 1), LONGEST_WAIT_SECONDS)
            warn(f"{url}: {_reason(error)}; trying again in {wait:.0f} s ({attempt} of {ATTEMPTS - 1})")
            sleep(wait)
    download.finish(sha256)


class _Download:
    def __init__(self, url: str, path: Path):
        self.url, self.path = url, path
        self.part = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".part.json")

    def run(self) -> None:
        """One attempt. Raises OSError or HTTPException if it does not reach the end."""
        if self._is_whole():
            return
        have, headers = self._resumable()
        request = urllib.request.Request(self.url, headers={"User-Agent": "gpt-neox", **headers})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            if response.status != PARTIAL_CONTENT or not _starts_at(response, have):
                have = 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length is not None else None
            self._describe(response, total)
            if have:
                info(f"going on with {self.path.name} at byte {have:,}")
            self._receive(response, have, total)

    def _noted(self) -> dict:
        """What is known of the unfinished file, empty if there is none of this address."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            have = self.part.stat().st_size
        except (OSError, ValueError):
            return {}
        return {**note, "have": have} if note["url"] == self.url else {}

    def _is_whole(self) -> bool:
        note = self._noted()
        return bool(note) and note["have"] == note["total"]

    def _resumable(self) -> tuple[int, dict[str, str]]:
        """Bytes that are there, and the headers asking for the rest of the very same file."""
        note = self._noted()
        if not note or not note["have"] or not note["validator"]:
            return 0, {}
        return note["have"], {"Range": f"bytes={note['have']}-", "If-Range": note["validator"]}

    def forget(self) -> None:
        """Delete what has come so far."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _describe(self, response: Any, total: int | None) -> None:
        tag = response.headers.get("ETag", "")
        # A weak tag does not promise equal bytes, so it cannot join two halves.
        validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
        atomic_write_text(self.note, json.dumps({"url": self.url, "total": total, "validator": validator}))

    def _receive(self, response: Any, have: int, total: int | None) -> None:
        left = total - have if total is not None else None
        with (
            open(self.part, "r+b" if have else "wb") as file,
            Progress(left, "B", self.path.name) as progress,
        ):
            file.truncate(have)
            file.seek(have)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                progress.update(len(chunk))
            if total is not None and have != total:
                raise http.client.IncompleteRead(b"", total - have)

    def finish(self, sha256: str | None) -> None:
        """Check what has come and give it its name."""
        if sha256 is not None and (found := file_sha256(self.part)) != sha256:
            self.forget()
            raise DataError(
                f"{self.url} has checksum {found}, not {sha256}: the download is damaged or another file; "
                "run again, or correct the checksum in the source list"
            )
        fsync_file(self.part)
        os.replace(self.part, self.path)
        fsync_directory(self.path.parent)
        self.note.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _starts_at(response: Any, place: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {place}-")


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (TOO_MANY_REQUESTS, RANGE_NOT_SATISFIABLE)
    if isinstance(error, urllib.error.URLError):
        unknown_host = isinstance(error.reason, socket.gaierror) and error.reason.errno == socket.EAI_NONAME
        return not unknown_host and not isinstance(error.reason, FileNotFoundError | IsADirectoryError)
    # Of the remaining errors only those of the connection pass; a full disk does not.
    return isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return f"the connection was lost with {error.expected or 0:,} bytes to come"
    return str(error) or type(error).__name__

"""Messages between programs over TCP: a line of JSON, with raw bytes behind it where the line says how many.

Nothing that is received can run code, and nothing is read that is larger than the reader allows.
"""

import contextlib
import hmac
import json
import socket
import time
from typing import Any

# Environment variables with the secrets that a weight server, or a sample server, asks of its clients.
WEIGHT_TOKEN, SAMPLE_TOKEN = "NEOX_WEIGHT_TOKEN", "NEOX_SAMPLE_TOKEN"
LINE_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
BODY_PIECE_BYTES = 1 << 24
SEND_SECONDS = 120.0


class MessageError(Exception):
    """What has come is no message: no JSON, of the wrong shape, cut off, too long, or too late."""


class Channel:
    """One connection. Not to be used by several threads at once, but for `end`."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._ahead = b""

    def send(self, value: Any, body: bytes = b"") -> None:
        """Raises: OSError if the other side is gone or does not read."""
        self._socket.settimeout(SEND_SECONDS)
        self._socket.sendall(json.dumps(value).encode() + b"\n")
        rest = memoryview(body)
        # The time is for each piece, since a whole model takes as long as it takes.
        for start in range(0, len(rest), BODY_PIECE_BYTES):
            self._socket.sendall(rest[start : start + BODY_PIECE_BYTES])

    def receive(self, limit: int = LINE_BYTES, seconds: float = 60.0) -> Any:
        """The next value; None where the other side has closed instead of sending one.

        A last line needs no line break. Raises: MessageError; OSError for a lost connection.
        """
        deadline, pieces, length = time.monotonic() + seconds, [], 0
        piece, self._ahead = self._ahead, b""
        while True:
            line, end, rest = piece.partition(b"\n")
            pieces.append(line)
            length += len(line)
            if length > limit:
                raise MessageError(f"a message of more than {limit:,} bytes")
            if end:
                self._ahead = rest
                return _decoded(b"".join(pieces))
            piece = self._piece(deadline, PIECE_BYTES)
            if not piece:
                text = b"".join(pieces)
                return _decoded(text) if text.strip() else None

    def receive_body(self, length: Any, seconds: float = 600.0) -> bytes:
        """The raw bytes that a message has announced. Raises: as `receive`."""
        if type(length) is not int or length < 0:
            raise MessageError("a message with a wrong number of bytes")
        deadline = time.monotonic() + seconds
        body, self._ahead = bytearray(self._ahead[:length]), self._ahead[length:]
        while len(body) < length:
            piece = self._piece(deadline, min(1 << 20, length - len(body)))
            if not piece:
                raise MessageError(f"the connection was closed {length - len(body):,} bytes before the end")
            body += piece
        return bytes(body)

    def _piece(self, deadline: float, most: int) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise MessageError("no whole message in time")
        self._socket.settimeout(left)
        try:
            return self._socket.recv(most)
        except TimeoutError:
            raise MessageError("no whole message in time") from None

    def end(self) -> None:
        """End the connection for everybody who holds it, processes that were forked off included, and wake the thread
        that uses it, which is to close it: the number of the descriptor might be another one's in its next call."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and give its descriptor back."""
        self.end()
        self._socket.close()


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line, parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise MessageError("a message that is no JSON") from None


def _not_json(word: str) -> None:
    raise ValueError(word)


def connect(host: str, port: int, seconds: float = 10.0) -> Channel:
    """Raises: OSError."""
    return Channel(socket.create_connection((host, port), timeout=seconds))


def same_token(given: Any, expected: str | None) -> bool:
    """Whether what was sent is the token, in a time that does not tell how much of it is right; any is where none is
    expected."""
    if not expected:
        return True
    if not isinstance(given, str):
        return False
    # JSON can hold halves of characters, which UTF-8 proper cannot.
    ours, theirs = (text.encode("utf-8", "surrogatepass") for text in (expected, given))
    return hmac.compare_digest(ours, theirs)


def is_loopback(address: str) -> bool:
    """Whether only programs of this machine reach what listens at an address. Raises: OSError for an unknown one."""
    found = {place[4][0] for place in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)}
    return bool(address) and all(str(place).startswith("127.") or place == "::1" for place in found)


def check_exposure(address: str, token: str | None, key: str, variable: str) -> str | None:
    """Why a server must not listen at an address, None if it may. Args: key, variable: what the user sets the address
    and the token by."""
    try:
        local = is_loopback(address)
    except OSError as error:
        return f"{key}={address!r} is no address of this machine ({error})"
    if local or token:
        return None
    return (
        f"{key}={address!r} can be reached from other machines: set {variable} in the environment to a secret "
        "that clients must send, or listen on 127.0.0.1"
    )

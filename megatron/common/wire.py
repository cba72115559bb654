"""JSON objects, one a line, over a TCP connection: bounded, and never trusted."""

import json
import socket
from typing import Any

LONGEST_LINE = 256 * 1024  # bytes
_PROBE_SECONDS = 4


class WireError(Exception):
    """The other side sends something that is no message, or is gone."""


class Wire:
    """One end of a connection. `messages` never blocks; `send` waits until the kernel has taken the line."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._unread = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Raises: WireError."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise WireError(str(error)) from error

    def messages(self) -> list[dict[str, Any]]:
        """What has arrived in whole lines. Call it when the connection is readable.

        Raises: WireError for a line that is no JSON object or too long; EOFError if the other side has closed;
        TimeoutError or another OSError if it is out of reach.
        """
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > LONGEST_LINE:
            raise WireError("a line is too long")
        return [_parsed(line) for line in lines]

    def close(self) -> None:
        self._socket.close()


def keep_alive(connection: socket.socket, seconds: int) -> None:
    """Let the kernels of both machines find out within `seconds` that the other one is out of reach.

    They answer for their processes, so that one which computes, or holds Python's lock, for long is not taken for lost.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = max(1, seconds // _PROBE_SECONDS - 1)
    options = {
        "TCP_KEEPIDLE": _PROBE_SECONDS,
        "TCP_KEEPINTVL": _PROBE_SECONDS,
        "TCP_KEEPCNT": probes,
        "TCP_USER_TIMEOUT": 1000 * seconds,  # milliseconds; counts where sent data is not acknowledged
        "TCP_NODELAY": 1,
    }
    for name, value in options.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise WireError("a line is no JSON") from None
    if not isinstance(message, dict):
        raise WireError("a line is no JSON object")
    return message

"""A small server: a bounded number of connections with a thread each, none of which harms the others."""

import atexit
import contextlib
import socket
import threading
import time
from collections.abc import Callable

from megatron.common.console import warn_of_rank
from megatron.common.errors import LaunchError
from megatron.common.messages import Channel, MessageError

CONNECTIONS = 8
CLOSING_SECONDS = 5.0
PAUSE_SECONDS = 0.2  # after a connection that could not be accepted


class Listener:
    """Listens from its construction to `close`.

    A connection beyond the bound is refused with a message. One whose messages are faulty is closed, with a line in the
    log; one that is lost, without.

    Args: name: for the log; key: of the configuration or command line that sets the port, for errors; converse: serves
    one connection to its end, may raise MessageError.
    Raises: LaunchError for a port that is not free.
    """

    def __init__(self, name: str, key: str, address: str, port: int, converse: Callable[[Channel], None]):
        self._name, self._converse = name, converse
        self._socket = _listening(address, port, key)
        self.address, self.port = self._socket.getsockname()[:2]
        self._open: dict[Channel, threading.Thread] = {}
        self._lock = threading.Lock()
        self._is_closing = False
        self._acceptor = threading.Thread(target=self._accept, name=name, daemon=True)
        self._acceptor.start()
        # A thread that Python's end takes by surprise may bring the whole process down.
        atexit.register(self.close)

    def close(self) -> None:
        """Stop listening, end all connections, and wait a little for their threads."""
        atexit.unregister(self.close)
        with self._lock:
            self._is_closing = True
            threads = [self._acceptor, *self._open.values()]
            for channel in self._open:
                channel.end()
        try:
            # Of a socket that a forked process holds too, closing alone is no end. This wakes our own thread as well.
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._socket.close()  # macOS knows no shutdown of what only listens
        deadline = time.monotonic() + CLOSING_SECONDS
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._socket.close()

    def _accept(self) -> None:
        while not self._is_closing:
            try:
                connection, peer = self._socket.accept()
            except OSError:
                # We are closing, the client has gone, or this process has no descriptor left for the moment.
                time.sleep(0.0 if self._is_closing else PAUSE_SECONDS)
                continue
            channel = Channel(connection)
            thread = threading.Thread(target=self._attend, args=(channel, peer[0]), daemon=True)
            with self._lock:
                if room := len(self._open) < CONNECTIONS and not self._is_closing:
                    self._open[channel] = thread
                    thread.start()
            if not room:
                refuse(
                    channel, "closing" if self._is_closing else f"all {CONNECTIONS} connections are in use"
                )

    def _attend(self, channel: Channel, peer: str) -> None:
        try:
            self._converse(channel)
        except MessageError as error:
            warn_of_rank(f"{self._name}: {error} from {peer}; the connection is closed")
        except OSError:
            pass  # The client has gone.
        finally:
            channel.close()
            with self._lock:
                self._open.pop(channel, None)


def refuse(channel: Channel, why: str) -> None:
    """Say why, if somebody listens, and close."""
    with contextlib.suppress(OSError):
        channel.send({"ok": False, "error": why})
    channel.close()


def _listening(address: str, port: int, key: str) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise LaunchError(f"{key}: {port} is no port; choose one between 1 and 65535")
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        raise LaunchError(
            f"{key}: {address}:{port} cannot be listened at ({error.strerror}); choose another port"
        ) from None
    return listener

"""A server that goes on whatever its clients do and the system lacks, and leaves nothing behind when it ends."""

import errno
import socket
import threading
from contextlib import closing

import pytest

from megatron.common import listener
from megatron.common.listener import Listener
from megatron.common.messages import Channel


def answer(channel: Channel) -> None:
    while (request := channel.receive()) is not None:
        channel.send(request)


@pytest.fixture
def server():
    opened = Listener("server", "port", "127.0.0.1", 0, answer)
    yield opened
    opened.close()


def connect(server: Listener) -> socket.socket:
    return socket.create_connection((server.address, server.port), timeout=10)


def test_a_lack_of_descriptors_passes_and_the_server_goes_on(monkeypatch):
    class Lacking:
        """A socket that can accept nobody at first."""

        def __init__(self, *arguments):
            self._inner, self._attempts = listening(*arguments), 0

        def accept(self):
            self._attempts += 1
            if self._attempts == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return self._inner.accept()

        def __getattr__(self, name):
            return getattr(self._inner, name)

    listening = listener._listening
    monkeypatch.setattr(listener, "_listening", Lacking)
    with closing(Listener("server", "port", "127.0.0.1", 0, answer)) as server, connect(server) as client:
        client.sendall(b'"here"\n')
        assert client.recv(10) == b'"here"\n'


def test_a_connection_that_comes_while_the_server_closes_is_closed_as_well(monkeypatch):
    accepted, go_on = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> Channel:
        accepted.set()
        assert go_on.wait(10)
        return Channel(connection)

    monkeypatch.setattr(listener, "Channel", slow)
    server = Listener("server", "port", "127.0.0.1", 0, answer)
    with connect(server) as client:
        assert accepted.wait(10)
        closer = threading.Thread(target=server.close)
        closer.start()
        closer.join(0.2)
        go_on.set()
        closer.join(10)
        # It may be told why.
        while client.recv(100):
            pass
    assert not closer.is_alive()


def test_closing_ends_the_conversations_that_go_on(server):
    with connect(server) as client:
        client.sendall(b"1\n")
        assert client.recv(10) == b"1\n"
        server.close()
        assert client.recv(10) == b"" and not server._open

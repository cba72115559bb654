"""A server that goes on whatever its clients do and the system lacks, and leaves nothing behind when it ends."""

import os
import resource
import socket
import threading

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


def test_a_lack_of_descriptors_passes_and_the_server_goes_on(server):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, limits[1])
        )
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.dup(2))
        os.close(taken.pop())
        client = connect(server)  # with the last one there is
        client.sendall(b'"here"\n')
        client.settimeout(2 * listener.PAUSE_SECONDS)
        with pytest.raises(TimeoutError):
            client.recv(10)
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    client.settimeout(10)
    assert client.recv(10) == b'"here"\n'
    client.close()


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

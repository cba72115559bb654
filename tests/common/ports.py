"""Ports for servers that a test starts later, in other processes."""

import os
import random
import socket

# Below those that the system gives to outgoing connections, which would take them meanwhile.
LOWEST, HIGHEST = 20_000, 32_000


def quiet_ports(count: int) -> list[int]:
    """Ports of this machine at which nothing listens; tests that pytest-xdist runs side by side get different ones."""
    width = (HIGHEST - LOWEST) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    lowest = LOWEST + width * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(lowest, lowest + width)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found

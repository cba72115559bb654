"""Ports for servers that a test starts later, in other processes."""

import random
import socket

# Below those that the system gives to outgoing connections, which would take them meanwhile.
LOWEST, HIGHEST = 20_000, 32_000


def quiet_ports(count: int) -> list[int]:
    """Ports of this machine at which nothing listens."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(LOWEST, HIGHEST)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found

"""Hosts that the tests of this folder share."""

import pytest

from tests.cluster.hosts import cluster


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory):
    """node1 and node2. A test that pulls a cable or ends an sshd makes hosts of its own."""
    with cluster(tmp_path_factory.mktemp("hosts") / "files", "node1", "node2") as hosts:
        yield hosts

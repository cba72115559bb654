"""Hosts that the tests of this folder share, and what the jobs on them are compared with."""

import functools

import pytest

from tests.cluster.hosts import cluster
from tests.cluster.jobs import LAYOUTS, launch, losses
from tests.common.runs import prepare_corpus


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory):
    """node1 and node2. A test that pulls a cable or ends an sshd makes hosts of its own."""
    with cluster(tmp_path_factory.mktemp("hosts") / "files", "node1", "node2") as hosts:
        yield hosts


@pytest.fixture(scope="session")
def job_folder(tmp_path_factory):
    """Folder of the jobs, which every host sees."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="session")
def job_data(job_folder):
    """Value of the key data_path."""
    return prepare_corpus(job_folder, 20)


@pytest.fixture(scope="session")
def on_one_machine(two_hosts, job_folder, job_data):
    """on_one_machine(layout): the losses of the two processes of one machine."""

    @functools.cache
    def train(layout: str) -> list[float]:
        name = f"one_{layout}"
        launch(two_hosts[0], job_folder, name, data_path=job_data, num_gpus=2, **LAYOUTS[layout])
        return losses(job_folder, name)

    return train

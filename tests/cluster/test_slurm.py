"""Jobs of a real Slurm: its variables are understood, and it starts, signals and restarts training."""

import ast
import sys

import pytest

from megatron.common import slurm as variables
from tests.cluster.slurm import slurm_cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of two hosts."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), "node1", "node2") as cluster:
        yield cluster


def test_lists_of_hosts_mean_what_slurm_means(slurm):
    for text in ("gpu[01-03,7],login", "r[1-2]n[3-4]", "node[9-11]", "a1,b"):
        assert (
            variables.expand_hosts(text) == slurm.run(["scontrol", "show", "hostnames", text]).stdout.split()
        )


def test_a_process_knows_its_allocation_and_its_meeting_place(slurm):
    script = "import os; print(dict(os.environ))"
    inside = slurm.run(
        ["salloc", "--quiet", "-N2", "--ntasks-per-node=2", sys.executable, "-c", script]
    ).stdout
    environment = ast.literal_eval(inside)
    assert variables.allocation(environment) == {"node1": 2, "node2": 2}
    assert variables.cores_per_host(environment) == {"node1": 2, "node2": 2}
    assert variables.meeting_place(environment) == {}
    # The order in which srun is told of hosts does not matter for the ranks.
    asked = ["srun", "-N2", "-n2", "--nodelist=node2,node1", sys.executable, "-c", script]
    ranks = {
        int(each["SLURM_PROCID"]): each
        for each in map(ast.literal_eval, slurm.run(asked).stdout.splitlines())
    }
    assert ranks[0]["SLURMD_NODENAME"] == "node1"
    meeting = variables.meeting_place(ranks[0])
    assert meeting == variables.meeting_place(ranks[1]) and meeting["MASTER_ADDR"] == "node1"

"""Jobs of a real Slurm: its variables are understood, and it starts, signals and restarts training."""

import json
import sys

import pytest

from megatron.common import slurm as variables
from tests.cluster.jobs import LAYOUTS, SMALL, STEPS, losses
from tests.cluster.slurm import slurm_cluster
from tests.common.runs import REPOSITORY, environment, prepare_corpus, run_command, write_config

TRAIN = [sys.executable, REPOSITORY / "deepy.py", REPOSITORY / "train.py"]


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


TELL = """
import json, os, sys
with open(os.path.join(sys.argv[1], os.environ.get("SLURM_PROCID", "shell")), "w") as file:
    json.dump(dict(os.environ), file)
"""


def test_a_process_knows_its_allocation_and_its_meeting_place(slurm, tmp_path):
    tell = [sys.executable, "-c", TELL, tmp_path]
    slurm.run(["salloc", "--quiet", "-N2", "--ntasks-per-node=2", *tell])
    # The order in which srun is told of hosts does not matter for the ranks.
    slurm.run(["srun", "-N2", "-n2", "--nodelist=node2,node1", *tell])
    shell, *ranks = (json.loads((tmp_path / name).read_text()) for name in ("shell", "0", "1"))
    assert variables.allocation(None, shell) == {"node1": 2, "node2": 2}
    assert variables.cores_per_host(shell) == {"node1": 2, "node2": 2}
    assert variables.meeting_place(shell) == {}
    assert ranks[0]["SLURMD_NODENAME"] == "node1"
    places = [variables.meeting_place(environment) for environment in ranks]
    assert places[0] == places[1] and places[0]["MASTER_ADDR"] == "node1"


def write(folder, name, data, **settings) -> str:
    """Write a config; its losses are `losses(folder, name)`."""
    given = {**SMALL, "data_path": data, "log_dir": str(folder / name), **settings}
    return write_config(folder, f"{name}.yml", **given)


SETTINGS = {"launcher": "slurm", "num_nodes": 2}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder of all hosts, with data."""
    folder = tmp_path_factory.mktemp("work")
    return folder, prepare_corpus(folder, 20)


def test_tp2_trains_within_an_allocation_as_on_one_machine(slurm, workplace):
    folder, data = workplace
    name = write(folder, "salloc", data, **SETTINGS, **LAYOUTS["tp2"], comment="two words", account="me")
    alone = write(folder, "alone_tp2", data, num_gpus=2, **LAYOUTS["tp2"])
    done = slurm.run(["salloc", "--quiet", "-N2", *TRAIN, name], directory=folder, env=environment())
    print(done.stdout, done.stderr)
    run_command(["deepy.py", "train.py", alone], folder)
    assert len(losses(folder, "salloc")) == STEPS
    assert losses(folder, "salloc") == losses(folder, "alone_tp2")

"""Jobs of a real Slurm: its variables are understood, and it starts, signals and restarts training."""

import json
import sys
from pathlib import Path

import pytest

from megatron.common import slurm as variables
from megatron.common.hosts import read_hostfile
from tests.cluster.jobs import LAYOUTS, SMALL, STEPS, losses
from tests.cluster.slurm import slurm_cluster
from tests.common.runs import REPOSITORY, environment, prepare_corpus, run_command, write_config

ALONE = ["deepy.py", "train.py"]
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


def test_a_hostfile_is_written_for_other_launchers(slurm, tmp_path):
    tool = [sys.executable, REPOSITORY / "tools" / "clusters" / "write_hostfile.py"]
    done = slurm.run(["salloc", "--quiet", "-N2", *tool, "--slots=3"], directory=tmp_path)
    path = Path(done.stdout.strip())
    assert path.parent == tmp_path and path.name.startswith("hosts_")
    assert read_hostfile(path) == {"node1": 3, "node2": 3}
    outside = slurm.run(tool, directory=tmp_path, check=False)
    assert outside.returncode == 1 and outside.stderr.startswith("error: there is no SLURM_JOB_NODELIST here")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that all hosts see, with data."""
    folder = tmp_path_factory.mktemp("work")
    return folder, prepare_corpus(folder, 20)


def write(workplace, name: str, **settings) -> str:
    """Write a config; its losses are `losses(folder, name)` afterwards."""
    folder, data = workplace
    given = {**SMALL, "data_path": data, "log_dir": str(folder / name), **settings}
    return write_config(folder, f"{name}.yml", **given)


def test_tp2_within_an_allocation_trains_as_on_one_machine(slurm, workplace):
    folder, _ = workplace
    through_srun = {"launcher": "slurm", "num_nodes": 2, "comment": "two words", "account": "neox"}
    name = write(workplace, "tp2", **LAYOUTS["tp2"], **through_srun)
    done = slurm.run(["salloc", "--quiet", "-N2", *TRAIN, name], directory=folder, env=environment())
    assert "through slurm (node1 slots 0; node2 slots 0), meeting at node1:2" in done.stdout
    run_command([*ALONE, write(workplace, "tp2_alone", num_gpus=2, **LAYOUTS["tp2"])], folder)
    assert len(losses(folder, "tp2")) == STEPS
    assert losses(folder, "tp2") == losses(folder, "tp2_alone")


def test_srun_may_start_the_script_itself(slurm, workplace):
    folder, _ = workplace
    name = write(workplace, "dp2", deepspeed_slurm=True)
    script = [sys.executable, REPOSITORY / "train.py", name]
    slurm.run(["srun", "-N2", "-n2", *script], directory=folder, env=environment())
    run_command([*ALONE, write(workplace, "dp2_alone", num_gpus=2)], folder)
    assert len(losses(folder, "dp2")) == STEPS
    assert losses(folder, "dp2") == losses(folder, "dp2_alone")

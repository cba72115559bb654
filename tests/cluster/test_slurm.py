"""Jobs of a real Slurm: its variables are understood, and it starts, signals and restarts training."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron.common.hosts import read_hostfile
from megatron.common.slurm import allocation, cores_per_host, expand_hosts, meeting_place
from tests.cluster.jobs import LAYOUTS, STEPS, launch, losses, probe, variables, write_job
from tests.cluster.slurm import slurm_cluster
from tests.common.checkpoints import tensors_of
from tests.common.paths import ROOT

SBATCH = ROOT / "tools" / "clusters" / "train.sbatch"
LONG = 500


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of two hosts."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), "node1", "node2") as cluster:
        yield cluster


def test_lists_of_hosts_mean_what_slurm_means(slurm):
    for text in ("gpu[01-03,7],login", "r[1-2]n[3-4]", "node[9-11]", "a1,b"):
        assert expand_hosts(text) == slurm.run(["scontrol", "show", "hostnames", text]).stdout.split()


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
    assert allocation(None, shell) == {"node1": 2, "node2": 2}
    assert cores_per_host(shell) == {"node1": 2, "node2": 2}
    assert meeting_place(shell) == {}
    assert ranks[0]["SLURMD_NODENAME"] == "node1"
    places = [meeting_place(environment) for environment in ranks]
    assert places[0] == places[1] and places[0]["MASTER_ADDR"] == "node1"


def test_a_hostfile_is_written_for_other_launchers(slurm, tmp_path):
    tool = [sys.executable, ROOT / "tools" / "clusters" / "write_hostfile.py"]
    done = slurm.run(["salloc", "--quiet", "-N2", *tool, "--slots=3"], directory=tmp_path)
    path = Path(done.stdout.strip())
    assert path.parent == tmp_path and path.name.startswith("hosts_")
    assert read_hostfile(path) == {"node1": 3, "node2": 3}
    outside = slurm.run(tool, directory=tmp_path, check=False)
    assert outside.returncode == 1 and outside.stderr.startswith("error: there is no SLURM_JOB_NODELIST here")


def test_deepy_starts_the_chosen_hosts_with_their_share_of_cores_and_the_users_variables(slurm, tmp_path):
    (tmp_path / ".deepspeed_env").write_text("FROM_FILE=a b,c\n", encoding="utf-8")
    told = {"NCCL_IB_HCA": "one,two"}
    inside = slurm.inside("--nodes=2", "--exclusive", "--cpus-per-task=4")
    ranks, seen = probe(
        inside,
        tmp_path,
        told,
        launcher="slurm",
        exclude="node1",
        num_gpus=2,
        comment="two words",
        account="neox",
    )
    assert "through slurm (node2 slots 0-1), meeting at node2:" in seen
    assert [(rank["host"], rank["local_rank"], rank["size"]) for rank in ranks] == [
        ("node2", 0, 2),
        ("node2", 1, 2),
    ]
    for rank in ranks:
        known = rank["environment"]
        assert (known["NCCL_IB_HCA"], known["FROM_FILE"], known["MASTER_ADDR"]) == (
            "one,two",
            "a b,c",
            "node2",
        )
        assert known["SLURM_CPUS_PER_TASK"] == "2"


def test_tp2_within_an_allocation_trains_as_on_one_machine(slurm, job_folder, job_data, on_one_machine):
    settings = {"launcher": "slurm", "num_nodes": 2, "data_path": job_data, **LAYOUTS["tp2"]}
    launch(slurm.inside("--nodes=2"), job_folder, "slurm_tp2", **settings)
    assert len(losses(job_folder, "slurm_tp2")) == STEPS
    assert losses(job_folder, "slurm_tp2") == on_one_machine("tp2")


def test_srun_may_start_the_script_itself(slurm, job_folder, job_data, on_one_machine):
    name = write_job(job_folder, "srun_dp2", data_path=job_data, deepspeed_slurm=True, **LAYOUTS["dp2"])
    script = [sys.executable, ROOT / "train.py", name]
    slurm.run(["srun", "--nodes=2", "--ntasks=2", *script], job_folder, variables())
    assert len(losses(job_folder, "srun_dp2")) == STEPS
    assert losses(job_folder, "srun_dp2") == on_one_machine("dp2")


def test_a_job_whose_time_ends_saves_is_queued_again_and_goes_on_bit_exact(
    slurm, two_hosts, job_folder, job_data
):
    places = {name: str(job_folder / f"{name}_saved") for name in ("requeued", "straight")}
    settings = {
        name: {"save": place, "load": place, "data_path": job_data, "checkpoint_factor": 10_000}
        | {"train_iters": LONG, "lr_decay_iters": LONG}
        for name, place in places.items()
    }
    config = write_job(job_folder, "requeued", launcher="slurm", num_gpus=1, **settings["requeued"])
    log = job_folder / "requeued.log"
    number = slurm.submit(
        ["--gpus-per-node=0", f"--chdir={ROOT}", f"--output={log}", SBATCH, job_folder / config],
        env=variables({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}),
    )
    wait_for(lambda: log.exists() and "iteration       10/" in log.read_text(), log)
    slurm.run(["scancel", "--batch", "--signal=USR1", number])
    job = slurm.wait(number)
    assert (job["Restarts"], job["ExitCode"]) == ("1", "0:0"), log.read_text()
    saved = {path.name for path in Path(places["requeued"]).glob("global_step*")}
    assert len(saved) == 2 and f"global_step{LONG}" in saved, log.read_text()
    launch(two_hosts[0], job_folder, "straight", num_gpus=2, **settings["straight"])
    assert len(losses(job_folder, "requeued")) == LONG
    assert losses(job_folder, "requeued") == losses(job_folder, "straight")
    ends = [tensors_of(Path(place, f"global_step{LONG}")) for place in places.values()]
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 20
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def wait_for(condition, log: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text() if log.exists() else "no output"
        time.sleep(0.02)

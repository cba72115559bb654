"""Jobs of a real Slurm: its variables are understood, and it starts, signals and restarts training."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron.common import slurm as variables
from tests.cluster.jobs import LAYOUTS, SMALL, STEPS, losses
from tests.cluster.slurm import slurm_cluster
from tests.common.checkpoints import tensors_of
from tests.common.runs import REPOSITORY, environment, prepare_corpus, run_command, write_config

ALONE = ["deepy.py", "train.py"]
SBATCH = REPOSITORY / "tools" / "clusters" / "train.sbatch"
LONG = 300
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


def test_a_job_whose_time_ends_saves_is_queued_again_and_goes_on_bit_exact(slurm, workplace):
    folder, _ = workplace
    long = {"train_iters": LONG, "lr_decay_iters": LONG, "checkpoint_factor": 10_000}
    places = {name: str(folder / f"{name}_saved") for name in ("requeued", "straight")}
    name = write(
        workplace, "requeued", launcher="slurm", deepspeed_slurm=True, num_gpus=1,
        save=places["requeued"], load=places["requeued"], **long,
    )  # fmt: skip
    log = folder / "requeued.log"
    number = slurm.submit(
        ["--gpus-per-node=0", f"--chdir={REPOSITORY}", f"--output={log}", SBATCH, folder / name],
        env={**environment(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    wait_for(lambda: log.exists() and "iteration       10/" in log.read_text(), log)
    slurm.run(["scancel", "--batch", "--signal=USR1", number])
    job = slurm.wait(number)
    assert (job["Restarts"], job["ExitCode"]) == ("1", "0:0"), log.read_text()
    stopped = [path.name for path in Path(places["requeued"]).glob("global_step*")]
    assert len(stopped) == 2 and f"global_step{LONG}" in stopped, log.read_text()
    straight = {"save": places["straight"], "load": places["straight"], **long}
    run_command([*ALONE, write(workplace, "straight", num_gpus=2, **straight)], folder)
    assert len(losses(folder, "requeued")) == LONG
    assert losses(folder, "requeued") == losses(folder, "straight")
    ends = [tensors_of(Path(place, f"global_step{LONG}")) for place in places.values()]
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 20
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def wait_for(condition, log: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text() if log.exists() else "no output"
        time.sleep(0.02)

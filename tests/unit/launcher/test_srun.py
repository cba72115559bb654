"""srun is told exactly what to start where. That it does so is seen in tests/cluster."""

import sys

import pytest

from megatron.common.errors import LaunchError
from megatron.launcher.job import Job
from megatron.launcher.srun import in_order_of_ranks, srun_command

INSIDE = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_JOB_CPUS_PER_NODE": "72(x2),64",
    "SLURM_CPU_BIND_LIST": "0x1",
    "SLURM_CPUS_PER_TASK": "72",
}
JOB = Job(
    script="train.py",
    arguments=("--megatron_config", "abc"),
    hosts={"n1": [0, 1, 2, 3], "n3": [0, 1, 2, 3]},
    is_local=False,
    on_gpus=True,
    master_addr="n1",
    master_port=20007,
    launcher="slurm",
    launcher_args="--comment='two words' --account=me",
)
PLACES = [
    *("--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--nodelist=n1,n3", "--distribution=block"),
    *("--export=ALL", "--kill-on-bad-exit=0"),
]
SCRIPT = ["--comment=two words", "--account=me", sys.executable, "-u", "train.py", "--megatron_config", "abc"]


def test_hosts_processes_and_cores_are_said():
    assert srun_command(JOB, INSIDE) == [
        *("env", "-u", "SLURM_CPU_BIND_LIST", "-u", "SLURM_CPUS_PER_TASK"),
        *("MASTER_ADDR=n1", "MASTER_PORT=20007", "OMP_NUM_THREADS=16"),
        *("srun", *PLACES, "--cpus-per-task=16", *SCRIPT),
    ]


def test_without_an_allocation_srun_decides_on_the_cores():
    assert srun_command(JOB, {}) == ["env", "MASTER_ADDR=n1", "MASTER_PORT=20007", "srun", *PLACES, *SCRIPT]


def test_fewer_cores_than_processes_are_shared_and_so_are_those_of_an_outer_step():
    few = {**INSIDE, "SLURM_JOB_CPUS_PER_NODE": "1(x3)", "SLURM_STEP_ID": "0", "OMP_NUM_THREADS": "2"}
    command = srun_command(JOB, few)
    assert "OMP_NUM_THREADS=2" in command
    start = command.index("--kill-on-bad-exit=0")
    assert command[start + 1 : start + 4] == ["--cpus-per-task=1", "--overcommit", "--overlap"]


def test_rank_0_is_on_the_first_host_of_slurms_order():
    assert list(in_order_of_ranks({"n3": [0], "n1": [0]}, INSIDE)) == ["n1", "n3"]
    assert list(in_order_of_ranks({"b": [0], "a": [0]}, {})) == ["a", "b"]


@pytest.mark.parametrize(
    "pool, environment, message",
    [
        ({}, {}, "there is no allocation here.*sbatch"),
        ({"n1": [0], "m1": [0]}, INSIDE, r"host 'm1' is not among those of this Slurm job \(n1, n2, n3\)"),
        ({"n1": [0]}, {**INSIDE, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "deepy.py 2 times"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(pool, environment, message):
    with pytest.raises(LaunchError, match=message):
        in_order_of_ranks(pool, environment)

"""What Slurm's variables say is understood. That Slurm itself writes them so is seen in tests/cluster."""

import pytest

from megatron.common import slurm
from megatron.common.errors import LaunchError


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("", []),
        ("login", ["login"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[08-10]-ib", ["n08-ib", "n09-ib", "n10-ib"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
    ],
)
def test_shortened_lists_of_hosts_are_expanded(text, hosts):
    assert slurm.expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["a[1-", "a]1[", "a[x]", "a,,b", "a[]"])
def test_what_is_no_list_of_hosts_is_refused(text):
    with pytest.raises(LaunchError, match="list of hosts"):
        slurm.expand_hosts(text)


def test_shortened_lists_of_numbers_are_expanded():
    assert slurm.expand_numbers("8(x3),4") == [8, 8, 8, 4]
    with pytest.raises(LaunchError, match="8\\(y3\\)"):
        slurm.expand_numbers("8(y3)")


@pytest.mark.parametrize(
    "told, slots",
    [
        ({"SLURM_GPUS_PER_NODE": "8", "SLURM_NTASKS_PER_NODE": "1"}, [8, 8, 8]),
        ({"SLURM_GPUS_PER_NODE": "a100:4", "SLURM_GPUS_ON_NODE": "8"}, [4, 4, 4]),
        ({"SLURM_GPUS_PER_NODE": "a100:4,v100:2"}, [6, 6, 6]),
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_TASKS_PER_NODE": "1(x3)"}, [2, 2, 2]),
        (
            {"SLURM_GPUS_ON_NODE": "0", "SLURM_NTASKS_PER_NODE": "4", "SLURM_TASKS_PER_NODE": "1(x3)"},
            [4, 4, 4],
        ),
        ({"SLURM_TASKS_PER_NODE": "2(x2),1"}, [2, 2, 1]),
        ({}, [1, 1, 1]),
    ],
)
def test_slots_are_the_gpus_else_the_tasks_of_a_host(told, slots):
    hosts = slurm.allocation(None, {"SLURM_JOB_NODELIST": "n[1-3]", **told})
    assert hosts == dict(zip(("n1", "n2", "n3"), slots, strict=True))


def test_num_gpus_counts_where_slurm_knows_of_no_gpus():
    hosts = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    assert slurm.allocation(4, hosts) == {"n1": 4, "n2": 4}
    assert slurm.allocation(4, {**hosts, "SLURM_GPUS_ON_NODE": "8"}) == {"n1": 8, "n2": 8}


def test_outside_of_slurm_there_is_no_allocation():
    assert slurm.allocation(2, {"SLURM_GPUS_ON_NODE": "8"}) == {}
    assert slurm.meeting_place({"SLURM_JOB_ID": "5"}) == {}
    assert slurm.meeting_port({}) is None


def test_jobs_on_the_same_hosts_meet_at_different_ports():
    step = {"SLURM_STEP_NODELIST": "n[2-3]", "SLURM_JOB_ID": "123456"}
    assert slurm.meeting_place(step) == {"MASTER_ADDR": "n2", "MASTER_PORT": "23456"}
    assert slurm.meeting_port({"SLURM_JOB_ID": "123457"}) == 23457


def test_cores_are_told_by_host():
    told = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_CPUS_PER_NODE": "72(x2),36"}
    assert slurm.cores_per_host(told) == {"n1": 72, "n2": 72, "n3": 36}
    assert slurm.cores_per_host({"SLURM_JOB_NODELIST": "n1"}) == {}

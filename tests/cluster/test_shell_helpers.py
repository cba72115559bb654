"""tools/bash reaches every host of a job."""

import pytest

from tests.cluster.hosts import wait_for
from tests.cluster.jobs import variables, write_hostfile
from tests.common.components import needs_program
from tests.common.paths import ROOT

OWN = "/dev/shm"  # A folder that each host has for itself.


@pytest.fixture
def helper(two_hosts, tmp_path):
    """helper(script, arguments...): run on node1; returns what it prints."""
    needs_program("pdsh", "pdcp", "pkill")
    env = variables({"DLTS_HOSTFILE": write_hostfile(tmp_path, "# ours", "node1 slots=8", "node2 slots=8")})
    return lambda name, *words: two_hosts[0].run([ROOT / "tools" / "bash" / name, *words], env=env).stdout


def test_a_command_runs_on_every_host(helper):
    assert sorted(helper("sync_cmd.sh", "hostname; echo a  b").splitlines()) == [
        *("node1: a b", "node1: node1", "node2: a b", "node2: node2"),
    ]


def test_files_and_folders_go_to_the_same_place_on_the_other_hosts(two_hosts, helper):
    node1, node2 = two_hosts
    node1.run(
        ["sh", "-c", f"mkdir -p {OWN}/in/deep && echo one > {OWN}/file && echo two > {OWN}/in/deep/file"]
    )
    helper("sync.sh", f"{OWN}/file")
    helper("syncdir.sh", f"{OWN}/in/deep")
    assert node2.run(["cat", f"{OWN}/file", f"{OWN}/in/deep/file"]).stdout == "one\ntwo\n"


def test_training_ends_on_every_host_and_nothing_else_does(two_hosts, helper):
    named = [host.start(["bash", "-c", "exec -a 'python train.py' sleep 1000"]) for host in two_hosts]
    others = [host.start(["sleep", "1001"]) for host in two_hosts]
    lines = ["python train.py 1000", "sleep 1001"]
    for host in two_hosts:
        wait_for(lambda host=host: sorted(host.processes().values()) == lines, f"processes of {host.name}")
    helper("killall.sh")
    assert [process.wait(10) != 0 for process in named] == [True, True]
    assert [list(host.processes().values()) for host in two_hosts] == [["sleep 1001"]] * 2
    for host, process in zip(two_hosts, others, strict=True):
        host.kill_all()
        process.wait(10)


def test_without_a_hostfile_the_helpers_say_so(two_hosts):
    script = ROOT / "tools" / "bash" / "sync_cmd.sh"
    done = two_hosts[0].run([script, "true"], env=variables({"DLTS_HOSTFILE": "/none"}), check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: no hostfile: set DLTS_HOSTFILE")

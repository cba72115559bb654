"""The hosts that the other tests of this folder run on are hosts to the programs that run there."""

import os

import pytest

from tests.cluster.hosts import cluster, wait_for
from tests.common.components import needs_program


def test_ssh_and_pdsh_lead_from_host_to_host(two_hosts):
    needs_program("pdsh")
    node1, node2 = two_hosts
    assert node1.run(["ssh", "node2", "hostname"]).stdout == "node2\n"
    assert node2.run(["ssh", "node1", "hostname -I"]).stdout.split() == [node1.address]
    both = node1.run(["pdsh", "-w", "node1,node2", "hostname"], env={"PDSH_RCMD_TYPE": "ssh"})
    assert sorted(both.stdout.splitlines()) == ["node1: node1", "node2: node2"]


def test_what_is_missing_is_told_on_a_machine_of_ones_own_and_fails_in_ci(monkeypatch):
    for variable, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", variable)
        with pytest.raises(outcome, match="not installed: no-such-program"):
            needs_program("sh", "no-such-program")


def test_a_host_can_be_cut_off_and_ends_with_all_that_runs_on_it(tmp_path):
    with cluster(tmp_path / "files", "left", "right") as (left, right):
        ask = ["ssh", "-o", "ConnectTimeout=1", "right", "true"]
        assert left.run(ask, check=False).returncode == 0
        right.set_link(up=False)
        assert left.run(ask, check=False).returncode == 255
        right.set_link(up=True)
        assert left.run(ask, check=False).returncode == 0
        right.stop_ssh()
        assert "refused" in left.run(ask, check=False).stderr
        sleeper = right.start(["sleep", "1000"])
        wait_for(right.processes, "sleep")
        assert list(right.processes().values()) == ["sleep 1000"]
        assert left.processes() == {}
        (pid,) = right.processes()
        assert right.run(["cat", "/proc/sys/kernel/hostname"], directory=tmp_path).stdout == "right\n"
    assert sleeper.wait(10) != 0
    assert not os.path.exists(f"/proc/{pid}")

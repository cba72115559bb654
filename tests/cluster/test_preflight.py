"""`deepy.py ... --preflight` on hosts that are as they should be, and on others."""

from tests.cluster.hosts import cluster
from tests.cluster.jobs import launch, write_hostfile
from tests.common.components import needs_program
from tests.common.paths import ROOT

CHECKS_ONLY = ("--preflight", "--dry-run")


def test_good_hosts_meet_and_their_network_is_measured(two_hosts, tmp_path):
    needs_program("pdsh")
    hostfile = write_hostfile(tmp_path, "node1 slots=1", "node2 slots=1")
    done = launch(two_hosts[0], tmp_path, "good", options=CHECKS_ONLY, hostfile=hostfile)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("node")]
    assert [row for row in rows if row[1] == "yes"] == [
        [host, "yes", rows[0][2], "same", "same", "CPU", "right"] for host in ("node1", "node2")
    ]
    assert "all-reduce of 16.0 MB over 2 processes" in done.stdout
    assert "bandwidth from node1 to" in done.stdout


def test_every_bad_host_is_named_with_what_is_wrong(tmp_path):
    needs_program("pdsh")
    with cluster(tmp_path / "files", "near", "other", "lost") as (near, other, lost):
        changed = tmp_path / "train.py"
        changed.write_text("pass\n", encoding="utf-8")
        other.run(["mount", "--bind", changed, ROOT / "train.py"])
        lost.set_link(up=False)
        hostfile = write_hostfile(tmp_path, "near slots=1", "other slots=1", "lost slots=1")
        done = launch(
            near, tmp_path, "bad", check=False, options=CHECKS_ONLY, hostfile=hostfile, train_batch_size=3
        )
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "other: project" in error
    assert "lost: ssh: connect to host lost port 22" in error
    assert "near" not in error
    assert "Traceback" not in done.stderr

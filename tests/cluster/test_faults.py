"""Whatever goes wrong on a host ends the job everywhere, soon, with a line that names host and rank (P34)."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.hosts import Host, cluster
from tests.cluster.jobs import LAYOUTS, variables, write_hostfile, write_job
from tests.cluster.slurm import slurm_cluster
from tests.common.components import needs_program
from tests.common.paths import ROOT
from tests.common.runs import prepare_corpus

LIMIT = 60  # seconds that any fault may take to end the job
OPENMPI = ("openmpi", "mpirun.openmpi")
# A worker that does what its folder says, without the time that a training takes to start.
WORKER = """
import os, signal, socket, time
from pathlib import Path
from megatron.common.activity import beat
from megatron.common.errors import run_main
from megatron.neox_arguments import NeoXArgs

def forgets_to_go_on():
    time.sleep(1000)

def main():
    args = NeoXArgs.consume_neox_args()
    args.configure_distributed_args()
    temporary = Path(__file__).with_name(f"{args.launcher}_{args.rank}.tmp")
    temporary.write_text(socket.gethostname())
    temporary.rename(temporary.with_suffix(".here"))
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    while not Path(__file__).with_name("stall").exists():
        if asked:
            temporary.with_suffix(".saved").touch()
            return
        beat("waiting", 3)
        time.sleep(0.05)
    if args.rank == 0:
        beat("waiting", 4)
    forgets_to_go_on()

run_main(main)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts of our own: cables are pulled and sshd is ended here."""
    needs_program("pdsh")
    with cluster(tmp_path_factory.mktemp("faults") / "files", "node1", "node2") as hosts:
        yield hosts


class Running:
    """A job of WORKER, typed on node1, one process on each host, all of which have begun."""

    def __init__(self, hosts: list[Host], folder: Path, launcher: str, begins: bool = True, **settings):
        self._host = hosts[0]
        (folder / "worker.py").write_text(WORKER)
        listed = write_hostfile(folder, "node1 slots=1", "node2 slots=1")
        config = write_job(
            folder, launcher, launcher=launcher, hostfile=listed, train_batch_size=4, **settings
        )
        env = variables({"PYTHONPATH": str(ROOT)})
        command = [sys.executable, ROOT / "deepy.py", "worker.py", config]
        self._shown = folder / f"{launcher}.out"
        with self._shown.open("w") as output:
            self._process = hosts[0].start(command, folder, env, stdout=output)
        marks = [folder / f"{launcher}_{rank}.here" for rank in range(2)]
        while begins and not all(mark.exists() for mark in marks):
            assert self._process.poll() is None, self._shown.read_text()
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Ctrl-C, after which all goes well."""
        (pid,) = [pid for pid, line in self._host.processes().items() if "deepy.py" in line]
        os.kill(pid, 2)
        assert self._process.wait(LIMIT) == 0, self.shown()

    def shown(self) -> str:
        return self._shown.read_text()

    def errors(self) -> list[str]:
        """Wait for the end, which must be a failure. Returns: the lines that say why."""
        code = self._process.wait(LIMIT)
        assert code != 0, self.shown()
        return [line for line in self.shown().splitlines() if line.startswith("error:")]


def kill_worker(host: Host, script: str) -> None:
    """kill -9 the only process of a host that runs `script` itself."""
    worker = re.compile(rf"\S*python\S* (-u )?\S*{re.escape(script)} ")
    # What it starts looks like itself for a moment.
    os.kill(min(pid for pid, line in host.processes().items() if worker.match(line)), 9)


def assert_nothing_is_left(hosts: list[Host]) -> None:
    end = time.monotonic() + LIMIT
    while any(host.processes() for host in hosts) and time.monotonic() < end:
        time.sleep(0.1)
    assert [host.processes() for host in hosts] == [{}, {}]


def test_a_training_whose_worker_is_killed_goes_on_by_itself(hosts, tmp_path):
    data = prepare_corpus(tmp_path, 20)
    folder, listed = tmp_path / "saved", write_hostfile(tmp_path, "node1 slots=1", "node2 slots=1")
    settings = {
        "data_path": data,
        "hostfile": listed,
        "save": str(folder),
        "checkpoint_factor": 40,
        "max_restarts": 3,
    }
    long = {"train_iters": 240, "lr_decay_iters": 240, "keep_last_n_checkpoints": 2}
    config = write_job(tmp_path, "job", **settings, **long, **LAYOUTS["dp2"])
    command = [sys.executable, ROOT / "deepy.py", ROOT / "train.py", config]
    with (tmp_path / "out").open("w") as output:
        job = hosts[0].start(command, tmp_path, variables(), stdout=output)
    while not (folder / "latest").exists():
        assert job.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.02)
    kill_worker(hosts[1], "train.py")
    shown = tmp_path / "out"
    assert job.wait(2 * LIMIT) == 0, shown.read_text()
    (error,) = [line for line in shown.read_text().splitlines() if line.startswith("error:")]
    assert re.match(r"error: rank 1 on node2 \(process \d+\) died without a word: it was killed", error)
    (told,) = re.findall(
        r"restart 1 of 3 \(max_restarts\), from the checkpoint of iteration (\d+)", shown.read_text()
    )
    records = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    starts = [record for record in records if "runtime/restarts" in record]
    assert [(start["iteration"], start["runtime/restarts"]) for start in starts] == [(0, 0), (int(told), 1)]
    assert_nothing_is_left(hosts)


def test_an_interrupt_lets_the_processes_of_all_hosts_save(hosts, tmp_path):
    Running(hosts, tmp_path, "pdsh").interrupt()
    assert {path.name for path in tmp_path.glob("*.saved")} == {"pdsh_0.saved", "pdsh_1.saved"}
    assert_nothing_is_left(hosts)


def test_a_killed_worker_ends_an_mpi_job(hosts, tmp_path):
    needs_program(OPENMPI[1])
    job = Running(hosts, tmp_path, OPENMPI[0])
    kill_worker(hosts[1], "worker.py")
    (error,) = job.errors()
    assert error.startswith("error: rank 1 on node2 (process ")
    assert_nothing_is_left(hosts)


def test_a_killed_process_ends_a_slurm_job(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        WORKER.replace("asked = []", "os.kill(os.getpid(), 9) if args.rank else None\n    asked = []")
    )
    config = write_job(tmp_path, "slurm", launcher="slurm", num_gpus=1, train_batch_size=4)
    command = [sys.executable, ROOT / "deepy.py", "worker.py", config]
    with slurm_cluster(tmp_path / "cluster", "node1", "node2") as slurm:
        env = variables({"PYTHONPATH": str(ROOT)})
        done = slurm.inside("--nodes=2").run(command, tmp_path, env, check=False, timeout=LIMIT)
        assert done.returncode == 1
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert error.startswith("error: rank 1 on node2 (process ")
        left = [line for host in slurm.hosts for line in host.processes().values()]
        assert not [line for line in left if "worker.py" in line]


def test_a_host_that_is_cut_off_ends_the_jobs_on_both_sides(hosts, tmp_path):
    needs_program(OPENMPI[1])
    launchers = ("pdsh", OPENMPI[0])
    jobs = [Running(hosts, tmp_path, name, master_port=29600 + n) for n, name in enumerate(launchers)]
    hosts[1].set_link(up=False)
    try:
        for job in jobs:
            assert job.errors() == [
                "error: rank 1 on node2 is out of reach: its host went down or was cut off from the network"
            ]
        assert_nothing_is_left(hosts)
    finally:
        hosts[1].set_link(up=True)


def test_a_stall_on_another_host_is_shown_with_its_stack(hosts, tmp_path):
    needs_program(OPENMPI[1])
    job = Running(hosts, tmp_path, OPENMPI[0], watchdog_timeout=5)
    (tmp_path / "stall").touch()
    (error,) = job.errors()
    assert error == (
        "error: nothing was finished for 5 s (watchdog_timeout): rank 1 on node2 does not go on (iteration 3, "
        "waiting); rank 0 on node1 waits (iteration 4, waiting)"
    )
    assert "in forgets_to_go_on\n    time.sleep(1000)" in job.shown()
    assert_nothing_is_left(hosts)


def test_a_port_in_use_is_named_by_the_rank_that_wanted_it(hosts, tmp_path):
    listen = "import socket, time; s = socket.create_server(('', 4567), backlog=100); time.sleep(1000)"
    hosts[0].start([sys.executable, "-c", listen])
    listed = write_hostfile(tmp_path, "node1 slots=1", "node2 slots=1")
    settings = {"data_path": prepare_corpus(tmp_path, 20), "hostfile": listed, "master_port": 4567}
    config = write_job(tmp_path, "job", **settings, **LAYOUTS["dp2"])
    command = [sys.executable, ROOT / "deepy.py", ROOT / "train.py", config]
    done = hosts[0].run(command, tmp_path, variables(), check=False, timeout=LIMIT)
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert error.startswith("error: rank 0 on node1: the processes cannot meet at node1:4567 (")
    assert error.endswith("another job may use the port; choose another master_port")
    (other,) = hosts[0].processes()
    os.kill(other, 9)
    assert_nothing_is_left(hosts)


def test_slots_and_ssh_that_are_not_there_keep_the_job_from_starting(hosts, tmp_path):
    job = Running(hosts, tmp_path, "pdsh", begins=False, global_num_gpus=4)
    (error,) = job.errors()
    assert "is for global_num_gpus=4, but 2 slots are available (node1 1, node2 1)" in error
    hosts[1].stop_ssh()
    (error,) = Running(hosts, tmp_path, "pdsh", begins=False).errors()
    assert error.startswith("error: host 'node2' cannot be reached through ssh: ")
    assert not list(tmp_path.glob("*.here"))
    assert [host.processes() for host in hosts] == [{}, {}]

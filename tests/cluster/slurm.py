"""A Slurm cluster for tests: munge, slurmctld, and a slurmd on each of some hosts (tests/cluster/hosts.py).

    with slurm_cluster(folder, "node1", "node2") as slurm:
        slurm.run(["srun", "--nodes=2", "hostname"]).stdout == "node1\nnode2\n"

Everything is at its smallest and asks for no right that a container lacks: no control groups, no accounting, no
database. State, logs and sockets lie in the folder; leaving the context ends the hosts, and so the daemons and all
jobs. The first host is the one that commands are typed on.
"""

import contextlib
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts import Host, cluster
from tests.common.components import find_program, needs_program

CPUS = 4
_START_SECONDS = 30.0
_POLL_SECONDS = 0.1

# A job that is put back into the queue waits until credentials of its first start are void, two minutes by default.
_CONF = """ClusterName=tests
SlurmctldHost={controller}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
KillWait=2
SlurmctldDebug=info
SlurmdDebug=info
NodeName={nodes} CPUs={cpus} State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP OverSubscribe=NO
"""


@dataclass
class Slurm:
    """A running cluster."""

    hosts: tuple[Host, ...]
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a command of Slurm needs to find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(
        self, arguments: Sequence, directory: Path | None = None, env: dict | None = None, **options
    ) -> subprocess.CompletedProcess:
        """Run a command on the first host (see Host.run)."""
        return self.hosts[0].run(arguments, directory, {**(env or {}), **self.environment}, **options)

    def inside(self, *allocation: str) -> "Allocation":
        """For commands that are typed within `salloc ALLOCATION`."""
        return Allocation(self, ["salloc", "--quiet", *allocation])

    def submit(self, arguments: Sequence, **options) -> int:
        """`sbatch ARGUMENTS`. Returns: the number of the job."""
        return int(self.run(["sbatch", "--parsable", *arguments], **options).stdout)

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says: Restarts, ExitCode, NodeList and the like."""
        shown = self.run(["scontrol", "--oneliner", "show", "job", number]).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait(
        self, number: int, states: Sequence[str] = ("COMPLETED",), timeout: float = 120.0
    ) -> dict[str, str]:
        """Wait until a job is in one of the states; what `job` says then."""
        end = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            over = job["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
            assert not over and time.monotonic() < end, f"{job}\n{self.logs()}"
            time.sleep(_POLL_SECONDS)
        return job

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(
            f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}"
            for log in sorted(self.folder.glob("*.log"))
        )


@dataclass
class Allocation:
    """Stands in for a host: whatever runs on it does so within an allocation of its own."""

    slurm: Slurm
    prefix: list[str]

    def run(self, arguments: Sequence, *options, **named) -> subprocess.CompletedProcess:
        """See Slurm.run."""
        return self.slurm.run([*self.prefix, *arguments], *options, **named)


@contextlib.contextmanager
def slurm_cluster(folder: Path, *names: str) -> Iterator[Slurm]:
    """A cluster of hosts of these names; `folder` takes everything they write."""
    needs_program("slurmctld", "slurmd", "munged", "srun", "sbatch", "scontrol")
    with cluster(folder / "hosts", *names) as hosts, contextlib.ExitStack() as stack:
        _write_files(folder, hosts)
        slurm = Slurm(tuple(hosts), folder)
        _start(stack, slurm, hosts[0], ["munged", "--foreground", "--force", *_munge_options(folder)])
        _wait_for(slurm, lambda: (folder / "munge.socket").exists(), "munged")
        _start(stack, slurm, hosts[0], ["slurmctld", "-D", "-i"])
        for host in hosts:
            _start(stack, slurm, host, ["slurmd", "-D", "-N", host.name])
        _wait_for(slurm, lambda: _are_idle(slurm), "the nodes")
        yield slurm


def _write_files(folder: Path, hosts: Sequence[Host]) -> None:
    (folder / "state").mkdir(parents=True)
    for host in hosts:
        (folder / host.name).mkdir()
    names = ",".join(host.name for host in hosts)
    conf = _CONF.format(controller=hosts[0].name, folder=folder, nodes=names, cpus=CPUS)
    (folder / "slurm.conf").write_text(conf, encoding="ascii")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)


def _munge_options(folder: Path) -> list[str]:
    files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "socket": "socket"}
    return [f"--{option}={folder}/munge.{suffix}" for option, suffix in files.items()]


def _start(stack: contextlib.ExitStack, slurm: Slurm, host: Host, command: Sequence[str]) -> None:
    program, *options = command
    log = stack.enter_context(open(slurm.folder / f"{program}_{host.name}.out.log", "w", encoding="utf-8"))
    host.start([find_program(program), *options], env=slurm.environment, stdout=log)


def _are_idle(slurm: Slurm) -> bool:
    shown = slurm.run(["sinfo", "--noheader", "--Node", "--format=%T"], check=False).stdout.split()
    return shown == ["idle"] * len(slurm.hosts)


def _wait_for(slurm: Slurm, condition, what: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} did not come up within {_START_SECONDS:g} s\n{slurm.logs()}"
        time.sleep(_POLL_SECONDS)

"""Look at every host of a job before it starts: `deepy.py ... --preflight`.

First each host tells what it is like (facts.py), compared with the machine on which the command was typed; then the
job's own processes meet, and measure the network between the hosts (links.py).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron.common.console import info
from megatron.common.errors import LaunchError
from megatron.launcher import facts
from megatron.launcher.job import Job
from megatron.launcher.reach import is_reached_by_ssh, ssh_command

ANSWER_SECONDS = 60.0
CLOCK_TOLERANCE_SECONDS = 1.0
BUSY_FRACTION = 0.02  # of a device's memory: more than an idle driver keeps
NETWORK_SCRIPT = facts.ROOT / "tools" / "clusters" / "measure_network.py"
_PARALLEL = 64
_COLUMNS = ("host", "reached", "python", "packages", "project", "devices", "clock")
# How the launchers that do not use ssh start one process on every host.
_ON_EVERY_HOST = {
    "slurm": lambda hosts: [
        "srun",
        f"--nodes={len(hosts)}",
        f"--ntasks={len(hosts)}",
        f"--nodelist={','.join(hosts)}",
    ],
    "jsrun": lambda hosts: ["jsrun", "-n", str(len(hosts)), "-r", "1", "-a", "1", "-c", "1"],
}


@dataclass
class Visit:
    """A look at one host.

    asked, answered: seconds since 1970 around its answer; trouble: why there is none.
    """

    host: str
    found: dict | None = None
    asked: float = 0.0
    answered: float = 0.0
    trouble: str = ""
    problems: list[str] = field(default_factory=list)


def run_preflight(job: Job, start: Callable[[Job], int]) -> None:
    """Check all hosts, print a table, let the processes meet.

    Args: start: runs a job to its end, returns its exit code.
    Raises: LaunchError naming every bad host and what is wrong with it.
    """
    here = facts.gather()
    visits = _visit_all(job)
    for visit in visits:
        visit.problems = problems_of(visit, here, job.hosts[visit.host] if job.on_gpus else [])
    info(table(visits, here))
    if bad := [f"{visit.host}: {', '.join(visit.problems)}" for visit in visits if visit.problems]:
        raise LaunchError(f"preflight: {'; '.join(bad)}; mend this, or leave such hosts out with `exclude`")
    if start(replace(job, script=str(NETWORK_SCRIPT))) != 0:
        raise LaunchError("preflight: the processes could not meet; the lines above name hosts and ranks")


def problems_of(visit: Visit, here: dict, slots: list[int]) -> list[str]:
    """What keeps a host from the job; empty for a good one.

    Args: here: facts of the machine on which the command was typed; slots: devices that the job wants there.
    """
    found = visit.found
    if found is None:
        return [visit.trouble]
    problems = []
    for what in ("python", "project"):
        if found[what] != here[what]:
            problems.append(f"{what} {found[what]} differs from {here[what]} here")
    for name in sorted({*found["packages"], *here["packages"]}):
        there, ours = (host["packages"].get(name, "missing") for host in (found, here))
        if there != ours:
            problems.append(f"{name} {there} differs from {ours} here")
    return problems + _device_problems(found["gpus"], slots) + _clock_problems(visit)


def _device_problems(gpus: list[dict] | None, slots: list[int]) -> list[str]:
    if not slots:
        return []
    if gpus is None:
        return ["no GPU (for processes on CPUs set DS_ACCELERATOR=cpu)"]
    if missing := [slot for slot in slots if slot >= len(gpus)]:
        return [f"slot {missing[0]} was asked for, and there are {len(gpus)} GPUs"]
    busy = [slot for slot in slots if gpus[slot]["used"] > BUSY_FRACTION * gpus[slot]["total"]]
    return [f"GPU {slot} is in use ({gpus[slot]['used']} MiB)" for slot in busy]


def _clock_problems(visit: Visit) -> list[str]:
    off = clock_offset(visit)
    if abs(off) <= CLOCK_TOLERANCE_SECONDS:
        return []
    return [f"its clock is {abs(off):.0f} s {'ahead' if off > 0 else 'behind'}"]


def clock_offset(visit: Visit) -> float:
    """Seconds by which a host's clock is certainly off: 0 if its answer could have been right."""
    told = visit.found["time"] if visit.found else visit.asked
    return max(0.0, told - visit.answered) - max(0.0, visit.asked - told)


def table(visits: list[Visit], here: dict) -> str:
    """One line per host; what is wrong is spelt out, what is right stays short."""
    rows = [_COLUMNS, *(_row(visit, here) for visit in visits)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(visit: Visit, here: dict) -> tuple[str, ...]:
    found = visit.found
    if found is None:
        return (visit.host, "NO", *["-"] * (len(_COLUMNS) - 2))
    packages = "same" if found["packages"] == here["packages"] else "DIFFER"
    project = "same" if found["project"] == here["project"] else "DIFFERS"
    python = found["python"] if found["python"] == here["python"] else f"{found['python']} (!)"
    off = clock_offset(visit)
    return (
        visit.host,
        "yes",
        python,
        packages,
        project,
        _devices(found["gpus"]),
        f"{off:+.1f} s" if off else "right",
    )


def _devices(gpus: list[dict] | None) -> str:
    if gpus is None:
        return "CPU"
    free = sum(gpu["used"] <= BUSY_FRACTION * gpu["total"] for gpu in gpus)
    return f"{free}/{len(gpus)} free"


def _visit_all(job: Job) -> list[Visit]:
    hosts = list(job.hosts)
    script = [sys.executable, str(Path(facts.__file__).resolve())]
    if job.is_local:
        return [_visit(hosts[0], script)]
    if job.launcher in _ON_EVERY_HOST:
        return _visit_at_once(hosts, [*_ON_EVERY_HOST[job.launcher](hosts), *script])
    with ThreadPoolExecutor(_PARALLEL) as pool:
        commands = (
            ssh_command(host, job.launcher, script) if is_reached_by_ssh(host, job.launcher) else script
            for host in hosts
        )
        return list(pool.map(_visit, hosts, commands))


def _visit(host: str, command: list[str]) -> Visit:
    """Ask one host by a command of its own."""
    visit = Visit(host, asked=time.time())
    answers, visit.trouble = _ask(command)
    visit.answered = time.time()
    visit.found = answers[0] if answers else None
    return visit


def _visit_at_once(hosts: list[str], command: list[str]) -> list[Visit]:
    """Ask all hosts by one command of the scheduler's."""
    asked = time.time()
    answers, trouble = _ask(command)
    answered = time.time()
    by_name = {name: answer for answer in answers for name in (answer["host"], answer["node_name"])}
    return [Visit(host, by_name.get(host), asked, answered, trouble) for host in hosts]


def _ask(command: list[str]) -> tuple[list[dict], str]:
    """Returns: the facts that were told, and the reason for what is missing."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {ANSWER_SECONDS:.0f} s"
    except OSError as error:
        return [], f"{command[0]} cannot be run ({error.strerror})"
    told = [line.partition(facts.MARK)[2] for line in done.stdout.splitlines() if facts.MARK in line]
    words = [line for line in done.stderr.splitlines() if line.strip()]
    return [json.loads(line) for line in told], words[
        -1
    ].strip() if words else f"no answer (exit code {done.returncode})"

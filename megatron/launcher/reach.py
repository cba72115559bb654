"""Whether the hosts of a job can be reached, and with which program: found out before anything starts."""

import os
import shlex
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from megatron.common.errors import LaunchError
from megatron.launcher.jsrun import check_allocation

SSH_SECONDS = 10
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
# For each launcher its program's usual names, and what its --version says where several programs share a name.
_PROGRAMS: dict[str, tuple[tuple[str, ...], str]] = {
    "pdsh": (("pdsh",), ""),
    "openmpi": (("mpirun", "mpirun.openmpi"), "(Open"),  # (Open MPI) or (OpenRTE)
    "mpich": (("mpirun", "mpirun.mpich", "mpiexec.hydra"), "HYDRA"),
    "impi": (("mpirun", "mpiexec.hydra"), "Intel(R) MPI"),
    "mvapich": (("mpirun", "mpiexec.hydra"), "HYDRA"),
    "slurm": (("srun",), ""),
    "jsrun": (("jsrun",), ""),
}
_ALIKE = ("mpich", "impi", "mvapich", "jsrun", "slurm")


def is_this_machine(host: str) -> bool:
    """Whether a host name means this machine."""
    return host in (*_LOCAL_NAMES, socket.gethostname(), socket.getfqdn())


def is_reached_by_ssh(host: str, launcher: str) -> bool:
    """Whether a launcher calls a host through ssh: mpirun starts processes of this machine by itself."""
    return launcher == "pdsh" or not is_this_machine(host)


def ssh_command(host: str, launcher: str, command: list[str]) -> list[str]:
    """The command line that runs `command` on a host as the launcher would, and never asks for a password."""
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}"]
    if launcher == "pdsh":
        options += shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    return ["ssh", *options, host, shlex.join(command)]


def find_program(launcher: str) -> str:
    """Path of the program behind a value of the key `launcher`.

    Raises: LaunchError if there is none, or only another one of the same name.
    """
    names, mark = _PROGRAMS[launcher]
    found = [path for name in names if (path := shutil.which(name))]
    if not found:
        raise LaunchError(
            f"launcher={launcher} needs the program {names[0]!r}, which is not on the PATH: install or load it, or set "
            "another launcher"
        )
    told = ""
    for path in found:
        told = _version(path) if mark else mark
        if mark in told:
            return path
    raise LaunchError(
        f"launcher={launcher}: {found[-1]} is another program ({' '.join(told.split())[:60]!r}); install or load "
        f"{launcher}, or set another launcher"
    )


def check_hosts(job: Any) -> None:
    """Args: job: a Job of several hosts.

    Raises: LaunchError for a launcher that is not there, slots it cannot serve, and hosts that cannot be reached.
    """
    find_program(job.launcher)
    if job.launcher == "jsrun":
        check_allocation(job.hosts)
    _check_slots(job)
    local = [host for host in job.hosts if host in _LOCAL_NAMES]
    if local and len(job.hosts) > 1:
        raise LaunchError(
            f"host {local[0]!r} is each host's name for itself: give it the name under which the others know it "
            f"({socket.gethostname()!r}?)"
        )
    _check_names(job)
    if job.checks_ssh:
        _check_ssh(job)


def _check_slots(job: Any) -> None:
    for host, slots in job.hosts.items():
        if job.launcher != "pdsh" and slots != list(range(len(slots))):
            raise LaunchError(
                f"launcher={job.launcher} starts a number of processes and cannot choose slots "
                f"{','.join(map(str, slots))} of {host!r}: take the first ones, or set launcher: pdsh"
            )
    counts = {host: len(slots) for host, slots in job.hosts.items()}
    if job.launcher in _ALIKE and len(set(counts.values())) > 1:
        told = ", ".join(f"{host} {count}" for host, count in counts.items())
        raise LaunchError(
            f"launcher={job.launcher} needs as many slots on each host as on the others ({told}); set num_gpus, or "
            "launcher: openmpi or pdsh"
        )


def _check_names(job: Any) -> None:
    """The meeting place. Other host names may be known to ssh alone."""
    if not job.master_addr:
        return
    try:
        socket.getaddrinfo(job.master_addr, job.master_port, type=socket.SOCK_STREAM)
    except OSError:
        raise LaunchError(
            f"the processes are to meet at {job.master_addr!r}, which has no address: correct the hostfile, or set "
            "master_addr to an address of its first host"
        ) from None


def _check_ssh(job: Any) -> None:
    """Call on all hosts at once."""
    hosts = [host for host in job.hosts if is_reached_by_ssh(host, job.launcher)]
    with ThreadPoolExecutor(max_workers=max(1, min(64, len(hosts)))) as pool:
        answers = dict(zip(hosts, pool.map(partial(_call, job.launcher), hosts), strict=True))
    failed = {host: answer for host, answer in answers.items() if answer is not None}
    if failed:
        host, answer = next(iter(failed.items()))
        others = f" (nor {', '.join(list(failed)[1:9])})" if len(failed) > 1 else ""
        raise LaunchError(
            f"host {host!r} cannot be reached through ssh{others}: {answer}; make `ssh {host} true` work without a "
            "password, leave the host out (exclude), or set no_ssh_check"
        )


def _call(launcher: str, host: str) -> str | None:
    """What is wrong with ssh to a host."""
    try:
        done = subprocess.run(
            ssh_command(host, launcher, ["true"]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=3 * SSH_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return "the program 'ssh' is not on the PATH"
    except subprocess.TimeoutExpired:
        return f"no answer within {3 * SSH_SECONDS} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"ssh ended with exit code {done.returncode}"])[-1]


def _version(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr

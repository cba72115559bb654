"""DeepSpeed's command lines for several hosts, mended where they would not do. As a program it becomes the command.

    python -m megatron.launcher.host_commands REQUEST.json

The request holds the job and the environment variables of its processes (megatron/launcher/multi_host.py).
"""

import contextlib
import io
import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from megatron.launcher.job import Job
from megatron.launcher.reach import find_program

_ETH0 = ["--mca", "btl_tcp_if_include", "eth0"]


def host_command(job: Job, exports: Mapping[str, str], folder: Path) -> list[str]:
    """The command line that starts a job, the program by its bare name.

    Args: exports: environment variables of the processes; folder: takes the host files that the command line names.
    """
    from deepspeed.launcher import runner

    hostfile = folder / "hosts"
    hostfile.write_text("".join(f"{host} slots={len(slots)}\n" for host, slots in job.hosts.items()))
    options = [
        *("--hostfile", str(hostfile), "--launcher", job.launcher, f"--launcher_args={job.launcher_args}"),
        *("--master_addr", job.master_addr, "--master_port", str(job.master_port)),
    ]
    arguments = runner.parse_args([*options, job.script, *job.arguments])
    return _BUILDERS[job.launcher](arguments, job, dict(exports))


def _pdsh(arguments: Namespace, job: Job, exports: dict[str, str]) -> list[str]:
    """On each host DeepSpeed's launcher of one host. The words go through a shell there, so they are quoted."""
    from deepspeed.launcher import multinode_runner, runner

    starter = multinode_runner.PDSHRunner(arguments, runner.encode_world_info(job.hosts))
    starter.exports = {name: shlex.quote(value) for name, value in exports.items()}
    starter.user_script = shlex.quote(job.script)
    starter.user_arguments = [shlex.quote(word) for word in job.arguments]
    command, _, _ = starter.get_cmd({}, job.hosts)
    folder = os.path.abspath(".")
    command[command.index(f"cd {folder};")] = f"cd {shlex.quote(folder)};"
    # It would show every command in full, which is mostly base64, at its start and at its failure.
    command.insert(len(command) - 1 - len(job.arguments), "--log_level=critical")
    return command


def _openmpi(arguments: Namespace, job: Job, exports: dict[str, str]) -> list[str]:
    """Without DeepSpeed's default interface eth0, which many machines do not have, and without Open MPI's binding of a
    process to a single core (of two processes; to a socket of more), on which its threads and data loaders would live.
    """
    from deepspeed.launcher import multinode_runner

    starter = multinode_runner.OpenMPIRunner(arguments, "", _counts(job))
    starter.exports |= exports | _meeting_place(job)
    command = starter.get_cmd({}, job.hosts)
    binding = [] if "--bind-to" in job.launcher_args else ["--bind-to", "none"]
    place = command.index("^openib") + 1
    rest = command[place:]
    if rest[: len(_ETH0)] == _ETH0 and "btl_tcp_if_include" not in job.launcher_args:
        rest = rest[len(_ETH0) :]
    return command[:place] + binding + rest


def _mpich(arguments: Namespace, job: Job, exports: dict[str, str]) -> list[str]:
    """Without DeepSpeed's helper between mpirun and the script, which loses the exit code; ranks are read from MPICH's
    own variables (megatron/neox_arguments/environment.py)."""
    from deepspeed.launcher import multinode_runner

    starter = multinode_runner.MPICHRunner(arguments, "", _counts(job))
    starter.exports |= exports
    command = starter.get_cmd({}, job.hosts)
    script = len(command) - 1 - len(job.arguments)
    helper = next(place for place, word in enumerate(command) if word.endswith("launcher_helper.py"))
    return command[:helper] + command[script:]


def _impi(arguments: Namespace, job: Job, exports: dict[str, str]) -> list[str]:
    from deepspeed.launcher import multinode_runner

    starter = multinode_runner.IMPIRunner(arguments, "", _counts(job))
    starter.exports |= exports
    with contextlib.redirect_stdout(io.StringIO()):  # It prints the command, once for every process.
        return starter.get_cmd({}, job.hosts)


def _mvapich(arguments: Namespace, job: Job, exports: dict[str, str]) -> list[str]:
    """With a host file of the job's own instead of one file in /tmp for all jobs and users."""
    from deepspeed.launcher import multinode_runner

    own = str(Path(arguments.hostfile).with_name("mvapich_hosts"))
    multinode_runner.MVAPICH_TMP_HOSTFILE = own
    starter = multinode_runner.MVAPICHRunner(arguments, "", _counts(job))
    starter.exports |= exports | _meeting_place(job)
    return starter.get_cmd({}, job.hosts)


_BUILDERS = {
    "pdsh": _pdsh,
    "openmpi": _openmpi,
    "mpich": _mpich,
    "impi": _impi,
    "mvapich": _mvapich,
}


def _counts(job: Job) -> dict[str, int]:
    return {host: len(slots) for host, slots in job.hosts.items()}


def _meeting_place(job: Job) -> dict[str, str]:
    """What some of DeepSpeed's command lines leave to mpi4py."""
    return {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}


def main(path: str) -> None:
    """Become the command of a request."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    job = Job(**request["job"])
    command = host_command(job, request["exports"], Path(path).parent)
    environment = {**os.environ, **_meeting_place(job)}
    if job.launcher == "pdsh":
        environment["PDSH_RCMD_TYPE"] = "ssh"
    os.execve(find_program(job.launcher), command, environment)


if __name__ == "__main__":
    main(sys.argv[1])

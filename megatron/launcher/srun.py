"""Slurm's srun, which starts processes within an allocation (or asks for one by itself)."""

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from megatron.common import slurm
from megatron.common.errors import LaunchError
from megatron.common.hosts import Pool

# Choices of the command around us (sbatch, salloc, an outer srun) that srun would take for wishes about the processes.
_NOT_INHERITED = ("SLURM_CPU_BIND", "SLURM_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_DISTRIBUTION")


def srun_command(job: Any, environment: Mapping[str, str]) -> list[str]:
    """The command line that starts a job.

    DeepSpeed's own counts processes and leaves it to Slurm where they run, and cuts variables at commas; here the hosts
    and the number of processes on each are said, each process gets its share of the allocated cores, and the variables
    go through srun's environment. What launcher_args says comes last and wins.

    Args: job: a Job; environment: Slurm's variables.
    """
    slots = len(next(iter(job.hosts.values())))
    options = [
        *(f"--nodes={len(job.hosts)}", f"--ntasks={job.size}", f"--ntasks-per-node={slots}"),
        *(f"--nodelist={','.join(job.hosts)}", "--distribution=block", "--export=ALL"),
        # The end of one process is not the end of the others: what they are to do then, they are told by us.
        "--kill-on-bad-exit=0",
    ]
    settings = {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}
    if cores := _cores_per_process(job.hosts, environment):
        options.append(f"--cpus-per-task={cores}")
        settings["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", str(cores))
        if cores * slots > min(slurm.cores_per_host(environment)[host] for host in job.hosts):
            options.append("--overcommit")
    if "SLURM_STEP_ID" in environment:
        # What is typed within a step shares the cores of that step.
        options.append("--overlap")
    dropped = [name for name in environment if name.startswith(_NOT_INHERITED)]
    return [
        *("env", *(word for name in dropped for word in ("-u", name))),
        *(f"{name}={value}" for name, value in settings.items()),
        *("srun", *options, *shlex.split(job.launcher_args)),
        *(sys.executable, "-u", job.script, *job.arguments),
    ]


def in_order_of_ranks(pool: Pool, environment: Mapping[str, str] = os.environ) -> Pool:
    """The hosts as Slurm counts them, whatever the order of a host file: rank 0 runs on the first.

    Raises: LaunchError for hosts outside of the allocation, without any, and for a place that already is one of several
    processes.
    """
    if "SLURM_STEP_ID" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        raise LaunchError(
            f"srun has started deepy.py {environment['SLURM_STEP_NUM_TASKS']} times, and each would start the whole "
            "job: type python deepy.py without srun, or let srun start the script itself"
        )
    if not pool:
        raise LaunchError(
            "launcher=slurm, but there is no allocation here, nor a hostfile: submit the command with sbatch "
            "(tools/clusters/train.sbatch), or type it within salloc"
        )
    allocated = list(slurm.allocation(environment=environment))
    if foreign := [host for host in pool if allocated and host not in allocated]:
        raise LaunchError(
            f"host {foreign[0]!r} is not among those of this Slurm job ({', '.join(allocated)}); correct the hostfile"
        )
    return (
        {host: pool[host] for host in allocated if host in pool} if allocated else dict(sorted(pool.items()))
    )


def _cores_per_process(hosts: Pool, environment: Mapping[str, str]) -> int | None:
    """Each process's share of the allocated cores; None where Slurm does not say."""
    cores = slurm.cores_per_host(environment)
    if not all(host in cores for host in hosts):
        return None
    return max(1, min(cores[host] // len(slots) for host, slots in hosts.items()))

"""Who am I: ranks from the environment, in torchrun's, Slurm's or MPI's variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.common.cores import available_cores
from megatron.common.errors import LaunchError
from megatron.common.slurm import meeting_place

# (local rank, rank, world size); the first complete set counts.
_SLURM = (("SLURM_LOCALID", "SLURM_PROCID", "SLURM_NTASKS"),)
_MPI = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("MPI_LOCALRANKID", "PMI_RANK", "PMI_SIZE"),
    ("JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
)
# How many of the processes are on this machine.
_LOCAL_SIZES = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "JSM_NAMESPACE_LOCAL_SIZE",
    "LOCAL_SIZE",
)
# Values of `launcher` that start processes without telling them torchrun's variables.
_MPI_LAUNCHERS = ("openmpi", "mpich", "impi", "mvapich", "jsrun")
_STANDARD = ("LOCAL_RANK", "RANK", "WORLD_SIZE")
# Keys that say how many processes a job has.
_COUNTS = ("global_num_gpus", "num_gpus", "hostfile", "include", "exclude")


@dataclass(frozen=True)
class Ranks:
    """Place of this process in the job; launched says whether a launcher told it."""

    local_rank: int
    rank: int
    world_size: int
    launched: bool


def ranks(slurm: bool = False, mpi: bool = False) -> Ranks:
    """Read the place of this process. Slurm's and MPI's variables are copied into torchrun's, which others read.

    Raises: LaunchError for variables that are half there or no numbers.
    """
    # The script of a Slurm job has the variables of a rank as well, although srun has not started it.
    slurm = slurm and ("SLURM_STEP_ID" in os.environ or "SLURM_JOB_ID" not in os.environ)
    for names in (*(_SLURM if slurm else ()), *(_MPI if mpi else ())):
        if all(name in os.environ for name in names[:2]):
            total = os.environ.get(names[2]) or _slurm_size()
            values = (os.environ[names[0]], os.environ[names[1]], total)
            os.environ.update(dict(zip(_STANDARD, values, strict=True)))
            break
    size = job_size()
    if size is None and "RANK" in os.environ:
        raise LaunchError(
            f"the environment has RANK={os.environ['RANK']!r} and no WORLD_SIZE: set both, or unset RANK to start "
            "without a launcher"
        )
    return Ranks(_number("LOCAL_RANK", 0), _number("RANK", 0), size or 1, size is not None)


def place(values: Mapping[str, Any]) -> Ranks:
    """The place of this process, from the variables of the launcher that a configuration names.

    Raises: LaunchError.
    """
    # A process that the launcher of this machine has started may stand in the environment of a larger MPI or Slurm job.
    named = values.get("launcher") if "RANK" not in os.environ else None
    slurm = bool(values.get("deepspeed_slurm")) or named == "slurm"
    mpi = bool(values.get("deepspeed_mpi")) or named in _MPI_LAUNCHERS
    found = ranks(slurm, mpi)
    if found.launched:
        _set_meeting_place(values)
        _share_cores()
    if slurm:
        for name, value in meeting_place().items():
            os.environ.setdefault(name, value)
    return found


def _set_meeting_place(values: Mapping[str, Any]) -> None:
    """MASTER_ADDR and MASTER_PORT of processes that srun or some MPI has started without deepy.py."""
    address = values.get("master_addr")
    if address is None and any(os.environ.get(name) == os.environ["WORLD_SIZE"] for name in _LOCAL_SIZES):
        address = "127.0.0.1"
    if address is not None:
        os.environ.setdefault("MASTER_ADDR", address)
    if values.get("master_port") is not None:
        os.environ.setdefault("MASTER_PORT", str(values["master_port"]))


def _share_cores() -> None:
    """One process's share of the cores as its number of threads, unless that is set: each would take all of them."""
    for name in _LOCAL_SIZES:
        if name in os.environ:
            share = max(1, available_cores() // max(1, _number(name, 1)))
            os.environ.setdefault("OMP_NUM_THREADS", str(share))
            return


def job_size() -> int | None:
    """Number of processes that a launcher has started, None if none has.

    Raises: LaunchError if that is no number.
    """
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else None


def sized(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a script that was started without deepy.py.

    The launcher's variables say how many processes there are; a script that was started by itself is alone, unless the
    configuration says otherwise.
    """
    if place(values).launched or any(values.get(key) is not None for key in _COUNTS):
        return values
    return {**values, "global_num_gpus": 1}


def _slurm_size() -> str:
    return str(_number("SLURM_NNODES", 1) * _number("SLURM_NTASKS_PER_NODE", 1))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise LaunchError(
            f"the environment variable {name}={text!r} must be a whole number; correct or unset it"
        )
    return int(text)

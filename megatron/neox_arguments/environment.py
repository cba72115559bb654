"""Who am I: ranks from the environment, in torchrun's, Slurm's or MPI's variables."""

import os
from dataclasses import dataclass

# (local rank, rank, world size); the first complete set counts.
_SLURM = (("SLURM_LOCALID", "SLURM_PROCID", "SLURM_NTASKS"),)
_MPI = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("MPI_LOCALRANKID", "PMI_RANK", "PMI_SIZE"),
)
_STANDARD = ("LOCAL_RANK", "RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """Place of this process in the job; launched says whether a launcher told it."""

    local_rank: int
    rank: int
    world_size: int
    launched: bool


def ranks(slurm: bool = False, mpi: bool = False) -> Ranks:
    """Read the place of this process. Slurm's and MPI's variables are copied into torchrun's, which others read."""
    for names in (*(_SLURM if slurm else ()), *(_MPI if mpi else ())):
        if all(name in os.environ for name in names[:2]):
            size = os.environ.get(names[2]) or _slurm_size()
            for standard, value in zip(
                _STANDARD, (os.environ[names[0]], os.environ[names[1]], size), strict=True
            ):
                os.environ[standard] = value
            break
    local_rank, rank, world_size = (
        int(os.environ.get(name, default)) for name, default in zip(_STANDARD, (0, 0, 1), strict=True)
    )
    return Ranks(local_rank, rank, world_size, "RANK" in os.environ and "WORLD_SIZE" in os.environ)


def _slurm_size() -> str:
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return str(nodes * int(os.environ.get("SLURM_NTASKS_PER_NODE", "1")))

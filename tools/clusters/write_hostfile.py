#!/usr/bin/env python
"""Write a hostfile of the Slurm job that this is run in, for launchers that need one; prints its path.

    export DLTS_HOSTFILE=$(python tools/clusters/write_hostfile.py)

A host has as many slots as GPUs were asked for, else as tasks.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import LaunchError, run_main  # noqa: E402
from megatron.common.files import atomic_write_text  # noqa: E402
from megatron.common.slurm import allocation  # noqa: E402


def main() -> None:
    """Raises: LaunchError outside of a Slurm job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", help="hostfile to write; default: hosts_JOB in this folder")
    parser.add_argument("--slots", type=int, help="processes of a host, where Slurm knows of no GPUs")
    given = parser.parse_args()
    hosts = allocation(given.slots)
    if not hosts:
        raise LaunchError(
            "there is no SLURM_JOB_NODELIST here: run this in a script of sbatch, or within salloc"
        )
    path = Path(given.file or f"hosts_{os.environ.get('SLURM_JOB_ID', 'slurm')}").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "".join(f"{host} slots={slots}\n" for host, slots in hosts.items()))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    run_main(main)

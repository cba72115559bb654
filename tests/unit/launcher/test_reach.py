"""The program behind a launcher is the one that the launcher means."""

import pytest

from megatron.common.errors import LaunchError
from megatron.launcher import Job
from megatron.launcher.reach import check_hosts, find_program


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(name, version): a program on the PATH that knows its version alone."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(name: str, version: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{version}'\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_a_program_is_known_by_what_it_says_of_itself(install):
    install("mpirun", "mpirun (Open MPI) 4.1.4")
    with pytest.raises(
        LaunchError, match=r"launcher=impi: .*mpirun is another program \('mpirun \(Open MPI\)"
    ):
        find_program("impi")
    assert find_program("openmpi").endswith("/mpirun")
    install("mpirun.openmpi", "mpirun.openmpi (OpenRTE) 4.1.4")
    hydra = install("mpirun.mpich", "HYDRA build details:")
    assert find_program("mpich") == hydra
    install("mpirun", "Intel(R) MPI Library for Linux* OS, Version 2021.9")
    assert find_program("impi").endswith("/mpirun")
    assert find_program("openmpi").endswith("/mpirun.openmpi")


def test_pdshs_options_of_ssh_count_for_the_check_too(install, tmp_path, monkeypatch):
    install("pdsh", "")
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$5" = -p ]\n')
    ssh.chmod(0o755)
    hosts = {"elsewhere": [0]}
    job = Job("train.py", (), hosts, False, True, "127.0.0.1", 29500)
    with pytest.raises(
        LaunchError, match="'elsewhere' cannot be reached through ssh: ssh ended with exit code 1;"
    ):
        check_hosts(job)
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p 2222")
    check_hosts(job)
    assert (tmp_path / "asked").read_text().splitlines()[1].endswith(" -p 2222 elsewhere true")


@pytest.mark.parametrize(
    ("launcher", "program"), [("pdsh", "pdsh"), ("mvapich", "mpirun"), ("slurm", "srun"), ("jsrun", "jsrun")]
)
def test_a_missing_program_is_named_with_the_launcher(install, launcher, program):
    with pytest.raises(
        LaunchError, match=f"launcher={launcher} needs the program '{program}', which is not on"
    ):
        find_program(launcher)

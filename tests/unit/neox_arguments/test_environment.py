import json
import os

import pytest

from megatron.common.errors import ConfigError, LaunchError
from megatron.neox_arguments import NeoXArgs, environment
from megatron.neox_arguments.environment import ranks
from tests.unit.neox_arguments.basic import minimal

STANDARD = ("LOCAL_RANK", "RANK", "WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name in STANDARD or name.startswith(("SLURM_", "OMPI_", "PMI_", "MPI_", "MV2_", "JSM_")):
            monkeypatch.delenv(name)
    for name in (*STANDARD, *MEETING):
        # Noted by monkeypatch, so that what the code sets is undone.
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


def place(**flags):
    found = ranks(**flags)
    return found.local_rank, found.rank, found.world_size, found.launched


def test_a_process_alone_is_rank_0_of_1():
    assert place() == (0, 0, 1, False)


def test_torchruns_variables_are_read(monkeypatch):
    for name, value in zip(STANDARD, "135", strict=True):
        monkeypatch.setenv(name, value)
    assert place() == (1, 3, 5, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0"}, "RANK='0' and no WORLD_SIZE: set both"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two' must be a whole number"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK='' must be a whole number"),
    ],
)
def test_variables_that_are_half_there_or_no_numbers_are_named(monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=message):
        ranks()


def test_a_script_started_by_itself_is_alone_unless_the_configuration_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron.neox_arguments.derive.accelerator_count", lambda: 8)
    path = tmp_path / "a.yml"
    for given, size in (({}, 1), ({"num_gpus": 2}, 2)):
        path.write_text(json.dumps({**minimal(global_num_gpus=None), **given}))
        args = NeoXArgs.consume_neox_args(input_args=[str(path)])
        assert args.global_num_gpus == size
    with pytest.raises(ConfigError, match="global_num_gpus=2; start the script through deepy.py"):
        args.configure_distributed_args()


def test_slurm_tells_a_script_that_srun_started_how_many_there_are(tmp_path, monkeypatch):
    for name, value in {"LOCALID": "0", "PROCID": "3", "NTASKS": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    path = tmp_path / "a.yml"
    path.write_text(json.dumps(minimal(global_num_gpus=None, deepspeed_slurm=True)))
    assert NeoXArgs.consume_neox_args(input_args=[str(path)]).global_num_gpus == 4


def test_slurms_variables_are_copied_into_the_standard_ones(monkeypatch):
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_PROCID", "9")
    monkeypatch.setenv("SLURM_NNODES", "4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    assert place() == (0, 0, 1, False)
    assert place(slurm=True) == (1, 9, 32, True)
    assert [os.environ[name] for name in STANDARD] == ["1", "9", "32"]


def test_mpis_variables_are_copied_into_the_standard_ones(monkeypatch):
    for name, value in zip(("LOCAL_RANK", "RANK", "SIZE"), "137", strict=True):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    assert place(mpi=True) == (1, 3, 7, True)


MPIS = {
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpich": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    "impi": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    "mvapich": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"),
}


@pytest.mark.parametrize("launcher", MPIS)
def test_the_launcher_says_whose_variables_count(monkeypatch, launcher):
    for name, value in zip(MPIS[launcher], "314", strict=True):
        monkeypatch.setenv(name, value)
    assert environment.place({}).world_size == 1
    found = environment.place({"launcher": launcher, "master_addr": "node7"})
    assert (found.rank, found.local_rank, found.world_size) == (3, 1, 4)
    assert os.environ["MASTER_ADDR"] == "node7"


def test_a_job_on_this_machine_within_a_larger_one_keeps_its_own_ranks(monkeypatch):
    for name, value in zip(MPIS["openmpi"], "314", strict=True):
        monkeypatch.setenv(name, value)
    for name, value in zip(STANDARD, "002", strict=True):
        monkeypatch.setenv(name, value)
    assert environment.place({"launcher": "openmpi"}).world_size == 2


def test_processes_that_are_all_on_one_machine_meet_there(monkeypatch):
    for name, value in zip(MPIS["openmpi"], "004", strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    environment.place({"deepspeed_mpi": True})
    assert "MASTER_ADDR" not in os.environ
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    environment.place({"deepspeed_mpi": True, "master_port": 4321})
    assert [os.environ[name] for name in MEETING] == ["127.0.0.1", "4321"]


def test_processes_share_the_cores_of_their_machine_unless_told(monkeypatch):
    monkeypatch.setattr("megatron.neox_arguments.environment.available_cores", lambda: 8)
    for name, value in zip((*STANDARD, "LOCAL_SIZE"), ("0", "0", "6", "3"), strict=True):
        monkeypatch.setenv(name, value)
    for given, threads in (("5", "5"), (None, "2")):
        monkeypatch.setenv("OMP_NUM_THREADS", given or "")
        if given is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        environment.place({})
        assert os.environ["OMP_NUM_THREADS"] == threads


def test_the_arguments_learn_their_place_and_refuse_another_job_size(monkeypatch):
    args = NeoXArgs.from_dict(minimal(global_num_gpus=2))
    for name, value in zip(STANDARD, "112", strict=True):
        monkeypatch.setenv(name, value)
    args.configure_distributed_args()
    assert (args.local_rank, args.rank, args.world_size) == (1, 1, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        ConfigError, match="started with 4 processes, but the configuration is for global_num_gpus=2"
    ):
        args.configure_distributed_args()

"""The command lines that start jobs on several hosts, word for word."""

import json
import shlex
import sys

import pytest

from megatron.common.errors import LaunchError
from megatron.launcher import Job
from megatron.launcher.host_commands import host_command
from megatron.launcher.jsrun import check_allocation, jsrun_command

EXPORTS = {"NCCL_DEBUG": "INFO", "WORDS": "it's $HOME"}
PYTHON = [sys.executable, "-u"]
SCRIPT = ["train.py", "--deepspeed_config", "ey=="]
MEETING = ["MASTER_ADDR=node1", "MASTER_PORT=29500"]
LSF = {"LSB_MCPU_HOSTS": "batch2 1 h36n03 42 h36n04 42"}


def job(launcher: str, slots: int = 2, hosts=("node1", "node2"), **changes) -> Job:
    pool = {host: list(range(slots)) for host in hosts}
    return Job("train.py", tuple(SCRIPT[1:]), pool, False, True, "node1", 29500, launcher=launcher, **changes)


@pytest.fixture
def built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda asked: host_command(asked, EXPORTS, tmp_path)


def flagged(flag: str, words: list[str]) -> list[str]:
    return [item for word in words for item in (flag, word)]


def test_intels_mpi_is_told_the_place_of_every_process(built):
    per_rank = []
    for rank, local in enumerate("0101"):
        per_rank += [":"] * bool(rank) + ["-n", "1", "-env", "RANK", str(rank), "-env", "LOCAL_RANK", local]
        per_rank += [*PYTHON, *SCRIPT]
    assert built(job("impi", launcher_args="-print-rank-map")) == [
        *("mpirun", "-ppn", "2", "-print-rank-map"),
        *("-genv", "NCCL_DEBUG", "INFO", "-genv", "WORDS", "it's $HOME"),
        *("-genv", "MASTER_ADDR", "node1", "-genv", "MASTER_PORT", "29500"),
        *("-genv", "WORLD_SIZE", "4", "-genv", "LOCAL_SIZE", "2", "-genv", "I_MPI_PIN", "0"),
        *("-hosts", "node1,node2"),
        *per_rank,
    ]


def test_mvapich_gets_a_host_file_of_the_jobs_own(built, tmp_path):
    hosts = tmp_path / "mvapich_hosts"
    theirs = ["MV2_SMP_USE_CMA=0", "MV2_DEBUG_SHOW_BACKTRACE=1", "MV2_SUPPORT_DL=1", "MV2_ENABLE_AFFINITY=0"]
    theirs += ["MV2_INTER_ALLGATHER_TUNING=5", "MV2_CUDA_USE_NAIVE=0"]
    command = built(job("mvapich"))
    if "MV2_USE_CUDA=1" in command:  # where this machine has a GPU
        theirs.insert(2, "MV2_USE_CUDA=1")
    assert command == [
        *("mpirun", "-np", "4", "-ppn", "2", "--hostfile", str(hosts)),
        *flagged("-env", [*theirs, "NCCL_DEBUG=INFO", "WORDS=it's $HOME", *MEETING]),
        *PYTHON,
        *SCRIPT,
    ]
    assert hosts.read_text() == "node1\nnode2\n"


def test_openmpi_is_bound_to_no_interface_and_no_core_unless_asked(built, tmp_path):
    head = ["mpirun", "-n", "4", "-hostfile", str(tmp_path / "hosts"), "--mca", "btl", "^openib"]
    tail = [
        *flagged("-x", ["UCX_TLS=tcp", "NCCL_DEBUG=INFO", "WORDS=it's $HOME", *MEETING]),
        *PYTHON,
        *SCRIPT,
    ]
    assert built(job("openmpi")) == head + ["--bind-to", "none"] + tail
    assert (tmp_path / "hosts").read_text() == "node1 slots=2\nnode2 slots=2\n"
    chosen = ["--mca", "btl_tcp_if_include", "ib0", "--bind-to", "numa"]
    assert built(job("openmpi", launcher_args=" ".join(chosen))) == head + chosen + tail


def test_mpich_starts_the_script_itself(built):
    assert built(job("mpich", launcher_args="-prepend-rank")) == [
        *("mpirun", "-n", "4", "-ppn", "2", "-prepend-rank"),
        *flagged("-genv", ["NCCL_DEBUG=INFO", "WORDS=it's $HOME"]),
        *("-genv", "MASTER_ADDR", "node1", "-genv", "MASTER_PORT", "29500"),
        *("-genv", "WORLD_SIZE", "4", "-genv", "LOCAL_SIZE", "2", "-hosts", "node1,node2"),
        *PYTHON,
        *SCRIPT,
    ]


def test_pdshs_words_survive_the_shell_of_the_host(built, tmp_path, monkeypatch):
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    command = built(job("pdsh", launcher_args="-N -u 30", hosts=("node1",)))
    assert command[:8] == ["pdsh", "-S", "-f", "1024", "-w", "node1", "-N", "-u"]
    words = shlex.split(" ".join(command[9:]).replace(";", " ; "))
    assert words[:10] == [
        *("export", "NCCL_DEBUG=INFO", ";", "export", "WORDS=it's $HOME", ";"),
        *("cd", str(folder), ";", sys.executable),
    ]
    assert words[10:13] == ["-u", "-m", "deepspeed.launcher.launch"] and words[-3:] == SCRIPT
    assert "--log_level=critical" in words and "--node_rank=%n" in words


def test_jsrun_gives_every_process_a_resource_set_of_its_own():
    asked = job("jsrun", slots=6, hosts=("h36n03", "h36n04"))
    assert jsrun_command(asked, EXPORTS, LSF) == [
        *("jsrun", "-n", "12", "-r", "6", "-a", "1", "-c", "7", "-g", "1", "-d", "packed", "-b", "rs"),
        *("-E", "NCCL_DEBUG=INFO", "-E", "WORDS=it's $HOME"),
        *PYTHON,
        *SCRIPT,
    ]


def test_what_a_user_tells_jsrun_wins():
    asked = job(
        "jsrun",
        slots=6,
        hosts=("h36n03",),
        launcher_args="--cpu_per_rs 4 -b none --smpiargs='-disable_gpu_hooks'",
    )
    command = jsrun_command(asked, {}, LSF)
    assert command[: command.index(sys.executable)] == [
        *("jsrun", "-n", "6", "-r", "6", "-a", "1", "-g", "1", "-d", "packed"),
        *("--cpu_per_rs", "4", "-b", "none", "--smpiargs=-disable_gpu_hooks"),
    ]


def test_a_request_is_plain_json(tmp_path):
    from dataclasses import asdict

    asked = job("openmpi", keys={"WANDB_API_KEY": "secret"})
    assert Job(**json.loads(json.dumps(asdict(asked)))).hosts == asked.hosts
    assert "secret" not in repr(asked)


def test_jsrun_starts_processes_where_its_allocation_is():
    check_allocation(job("jsrun", hosts=("h36n03",)).hosts, LSF)
    with pytest.raises(LaunchError, match=r"order \(h36n03, h36n04\) and cannot choose h36n04"):
        check_allocation(job("jsrun", hosts=("h36n04",)).hosts, LSF)
    with pytest.raises(LaunchError, match="no LSF allocation here"):
        check_allocation(job("jsrun").hosts, {})

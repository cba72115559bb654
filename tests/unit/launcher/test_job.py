"""Everything that can be known to be wrong is said before a process starts."""

import os
import socket
from types import SimpleNamespace

import pytest

from megatron.common.errors import LaunchError
from megatron.launcher import job as jobs
from megatron.launcher import resolve
from megatron.launcher.worker_environment import visible_devices, worker_environment


def args(**changes) -> SimpleNamespace:
    """The launcher's part of a NeoXArgs."""
    keys = dict.fromkeys(("hostfile", "include", "exclude", "num_gpus", "master_addr", "text_gen_type"))
    keys |= dict.fromkeys(("launcher_args", "comment", "account", "use_wandb", "use_comet"))
    keys |= {"num_nodes": -1, "master_port": 29500, "force_multi": False, "global_num_gpus": 1}
    keys |= {"launcher": "pdsh", "no_ssh_check": False, "watchdog_timeout": 0.0}
    return SimpleNamespace(**{**keys, "user_script": __file__, **changes})


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with as many devices as the test says."""
    for name in ("DLTS_HOSTFILE", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)

    def set_devices(count):
        monkeypatch.setattr("megatron.launcher.job.accelerator_count", lambda: count)
        monkeypatch.setattr("megatron.common.hosts.accelerator_count", lambda: count)

    set_devices(0)
    return set_devices


def test_without_gpus_there_are_as_many_processes_as_asked_for():
    job = resolve(args(num_gpus=3, global_num_gpus=3), [])
    assert (job.size, job.is_local, job.on_gpus) == (3, True, False)
    assert resolve(args(global_num_gpus=2), []).slots == [0, 1]


def test_with_gpus_all_of_them_are_used_unless_told_otherwise(machine):
    machine(4)
    assert resolve(args(global_num_gpus=4), []).slots == [0, 1, 2, 3]
    assert resolve(args(num_gpus=2, global_num_gpus=2), []).slots == [0, 1]
    assert resolve(args(include="localhost:1,3", global_num_gpus=2), []).slots == [1, 3]


@pytest.mark.parametrize("text", ["many", "0", "70000", ""])
def test_a_port_of_the_environment_that_is_none_is_named(monkeypatch, text):
    monkeypatch.setenv("MASTER_PORT", text)
    with pytest.raises(LaunchError, match=f"MASTER_PORT='{text}' must lie between 1 and 65535"):
        resolve(args(), [])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("203.0.113.1", "is not an address of this machine, where all processes run; leave it out"),
        ("no.such.host.invalid", "is unknown; leave it out"),
    ],
)
def test_processes_of_one_machine_meet_on_it(address, message):
    with pytest.raises(LaunchError, match=f"master_addr='{address}' {message}"):
        jobs.check(resolve(args(master_addr=address), []))
    assert jobs.check_address("127.0.0.1") is jobs.check_address("localhost") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 5, "global_num_gpus": 5}, "num_gpus=5, but this machine has 4 devices"),
        ({"include": "localhost:7"}, "names slot 7 of 'localhost', which has 4 slots"),
        ({"global_num_gpus": 3}, "configuration is for global_num_gpus=3, but 4 slots are available"),
        ({"num_nodes": 2}, "num_nodes=2, but without a hostfile there is only this machine"),
    ],
)
def test_slots_that_do_not_exist_are_refused(machine, changes, message):
    machine(4)
    with pytest.raises(LaunchError, match=message):
        resolve(args(**changes), [])


def test_a_host_file_that_names_this_machine_only_makes_a_local_job(tmp_path, machine):
    machine(2)
    for name in ("localhost", socket.gethostname()):
        (tmp_path / "hosts").write_text(f"{name} slots=2\n")
        job = resolve(args(hostfile=str(tmp_path / "hosts"), global_num_gpus=2), [])
        assert job.is_local and job.slots == [0, 1]
    (tmp_path / "hosts").write_text("localhost slots=3\n")
    with pytest.raises(LaunchError, match="slot 2 was asked for, but this machine has 2 devices"):
        resolve(args(hostfile=str(tmp_path / "hosts"), global_num_gpus=3), [])


def test_other_hosts_or_force_multi_go_to_deepspeeds_launcher(tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("node1 slots=8\nnode2 slots=8\n")
    job = resolve(args(hostfile=str(tmp_path / "hosts"), global_num_gpus=16), [])
    assert not job.is_local and job.master_addr == "node1"
    assert not resolve(args(force_multi=True), []).is_local
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="launcher=pdsh needs the program 'pdsh'"):
        jobs.check(job)


def test_a_missing_script_is_refused():
    with pytest.raises(LaunchError, match="nowhere.py: no such script"):
        jobs.check(resolve(args(user_script="nowhere.py"), []))


def test_a_port_in_use_is_refused_with_a_free_one():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(LaunchError, match=f"master_port={port} is in use") as caught:
            jobs.check(resolve(args(master_port=port), []))
    free = int(str(caught.value).rsplit(" ", 1)[1])
    assert free != port
    jobs.check_port("127.0.0.1", free)
    jobs.check_port("127.0.0.1", port)


def test_jobs_on_this_machine_that_asked_for_no_port_never_meet_at_the_same():
    ports = {resolve(args(), []).master_port for _ in range(3)}
    assert len(ports) == 3 and jobs.DEFAULT_PORT not in ports
    for port in ports:
        jobs.check_port("127.0.0.1", port)


def test_the_environments_port_fills_in_for_the_default(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "4321")
    assert resolve(args(), []).master_port == 4321
    assert resolve(args(master_port=1234), []).master_port == 1234


def test_the_job_is_described_in_one_line(machine):
    machine(8)
    keys = {
        "include": "localhost:0,1,2,5",
        "global_num_gpus": 4,
        "user_script": "train.py",
        "master_port": 4321,
    }
    assert resolve(args(**keys), []).describe() == (
        "train.py on 4 GPU processes (localhost slots 0-2,5), meeting at 127.0.0.1:4321"
    )


def test_slots_count_within_what_is_visible_already():
    assert visible_devices([0, 2], None) == "0,2"
    assert visible_devices([0, 2], "4,5,6,7") == "4,6"
    assert visible_devices([1], "GPU-aa,GPU-bb") == "GPU-bb"


def test_threads_are_shared_between_the_processes_unless_set(machine):
    job = resolve(args(global_num_gpus=1000), [])
    assert worker_environment(job, 0, {})["OMP_NUM_THREADS"] == "1"
    assert worker_environment(job, 0, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"
    alone = resolve(args(), [])
    assert int(worker_environment(alone, 0, {})["OMP_NUM_THREADS"]) <= (os.cpu_count() or 1)


def test_gpu_workers_see_their_jobs_devices(machine):
    machine(4)
    job = resolve(args(include="localhost:1,3", global_num_gpus=2), [])
    environment = worker_environment(job, 1, {"PATH": "/bin"})
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,3" and environment["LOCAL_RANK"] == "1"
    assert "DS_ACCELERATOR" not in environment and environment["PATH"] == "/bin"

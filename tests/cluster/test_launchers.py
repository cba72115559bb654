"""Two hosts, started as a user would start them, train what one machine trains."""

import re

import pytest

from tests.cluster.jobs import LAYOUTS, STEPS, launch, losses, probe, write_hostfile
from tests.common.components import needs_program

PROGRAMS = {"pdsh": "pdsh", "openmpi": "mpirun.openmpi", "mpich": "mpirun.mpich"}
launchers = pytest.mark.parametrize("launcher", PROGRAMS)


@pytest.mark.parametrize("layout", LAYOUTS)
@launchers
def test_two_hosts_train_what_one_machine_trains(
    two_hosts, job_folder, job_data, on_one_machine, launcher, layout
):
    needs_program(PROGRAMS[launcher])
    hosts = write_hostfile(job_folder, "node1 slots=1", "node2 slots=1")
    name = f"{launcher}_{layout}"
    settings = {"launcher": launcher, "hostfile": hosts, "data_path": job_data, **LAYOUTS[layout]}
    launch(two_hosts[0], job_folder, name, **settings)
    assert [host.processes() for host in two_hosts] == [{}, {}]
    trained = losses(job_folder, name)
    assert len(trained) == STEPS
    assert trained == on_one_machine(layout)
    places = {path.name.split("_")[0] for path in (job_folder / name).glob("*_stdout.txt")}
    assert places == {"node1", "node2"}


@launchers
def test_the_hosts_get_ranks_and_environment(two_hosts, tmp_path, launcher):
    needs_program(PROGRAMS[launcher])
    write_hostfile(tmp_path, "# a cluster", "node1 slots=4", "node2 slots=4", "node3 slots=4")
    (tmp_path / ".deepspeed_env").write_text('# ours\n\nWORDS=it\'s $HOME, "a=b"\nNCCL_DEBUG=WARN\n')
    env = {"NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "fabric0", "WANDB_API_KEY": "secret"}
    env["DLTS_HOSTFILE"] = str(tmp_path / "hosts")
    ranks, _ = probe(
        two_hosts[0], tmp_path, env, launcher=launcher, num_nodes=2, num_gpus=2, master_port=4567
    )
    assert [(rank["host"], rank["local_rank"], rank["size"]) for rank in ranks] == [
        ("node1", 0, 4),
        ("node1", 1, 4),
        ("node2", 0, 4),
        ("node2", 1, 4),
    ]
    for rank in ranks:
        assert rank["folder"] == str(tmp_path)
        assert rank["environment"]["WORDS"] == 'it\'s $HOME, "a=b"'
        assert rank["environment"]["NCCL_DEBUG"] == "WARN"
        assert rank["environment"]["GLOO_SOCKET_IFNAME"] == "fabric0"
        assert (rank["environment"]["MASTER_ADDR"], rank["environment"]["MASTER_PORT"]) == ("node1", "4567")
        assert "WANDB_API_KEY" not in rank["environment"]


def test_a_filter_can_leave_one_host_which_is_another(two_hosts, tmp_path):
    needs_program("pdsh")
    hosts = write_hostfile(tmp_path, "node1 slots=2", "node2 slots=2")
    settings = {"use_wandb": True, "launcher_args": "-N", "master_addr": two_hosts[1].address}
    ranks, shown = probe(
        two_hosts[0],
        tmp_path,
        {"WANDB_API_KEY": "secret"},
        ["--hostfile", hosts],
        exclude="node1@node2:0",
        **settings,
    )
    assert [(rank["host"], rank["size"]) for rank in ranks] == [("node2", 1)]
    assert ranks[0]["environment"]["WANDB_API_KEY"] == "secret"
    assert ranks[0]["environment"]["MASTER_ADDR"] == two_hosts[1].address
    assert "probe.py on 1 CPU process through pdsh (node2 slots 1)" in shown
    assert "node2: world size 1" not in shown and "world size 1" in shown


def test_the_launcher_can_be_forced_on_one_machine(two_hosts, tmp_path):
    needs_program("mpirun.openmpi")
    ranks, shown = probe(two_hosts[0], tmp_path, launcher="openmpi", force_multi=True, num_gpus=2)
    assert [(rank["host"], rank["local_rank"]) for rank in ranks] == [("node1", 0), ("node1", 1)]
    assert "through openmpi (localhost slots 0-1)" in shown
    assert all("OMPI_COMM_WORLD_RANK" in rank["environment"] for rank in ranks)


@pytest.mark.parametrize(
    ("settings", "lines", "message"),
    [
        ({}, ["node1 slots=1", "ghost slots=1"], "host 'ghost' cannot be reached through ssh: .*ghost"),
        ({}, ["node2 slots=1", "ghost slots=1", "spook slots=1"], r"'ghost' cannot .* ssh \(nor spook\): "),
        ({"no_ssh_check": True}, ["ghost slots=1"], "are to meet at 'ghost', which has no address: correct"),
        ({}, ["localhost slots=1", "node2 slots=1"], r"'localhost' is each host's name .* \('node1'\?\)"),
        ({"launcher": "impi"}, ["node1 slots=1", "node2 slots=1"], "launcher=impi: .* is another program"),
        (
            {"launcher": "jsrun"},
            ["node2 slots=1"],
            "launcher=jsrun needs the program 'jsrun', which is not on",
        ),
        ({"launcher": "mpich"}, ["node1 slots=1", "node2 slots=2"], "as many slots .*node1 1, node2 2"),
        (
            {"launcher": "openmpi", "include": "node2:1"},
            ["node1 slots=2", "node2 slots=2"],
            "launcher=openmpi starts a number of processes and cannot choose slots 1 of 'node2'",
        ),
        (
            {},
            ["node1 slots=2", "node2 slot=2"],
            "hosts, line 2: 'node2 slot=2' is not of the form NAME slots=N",
        ),
        ({}, ["node1 slots=2", "node1 slots=2"], "hosts, line 2: host 'node1' is listed twice"),
        ({}, ["node1 slots=0", "node2 slots=1"], "hosts, line 1: host 'node1' has no slots; leave it out"),
    ],
)
def test_a_users_mistake_is_one_line_and_starts_nothing(two_hosts, tmp_path, settings, lines, message):
    hosts = write_hostfile(tmp_path, *lines)
    ranks, shown = probe(two_hosts[0], tmp_path, check=False, hostfile=hosts, **settings)
    assert ranks == []
    error = shown.splitlines()[-1]
    assert error.startswith("error: ") and "Traceback" not in shown
    assert re.search(message, error), error

"""What a look at a host makes of the facts it tells."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron.common.errors import LaunchError
from megatron.launcher import facts, preflight
from megatron.launcher.job import Job
from megatron.launcher.preflight import Visit

GOOD = {
    "host": "node1",
    "node_name": None,
    "python": "3.11.7",
    "executable": "/opt/python",
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "project": "0123456789ab",
    "gpus": [{"used": 10, "total": 81559}, {"used": 10, "total": 81559}],
    "time": 1000.5,
}

JOB = Job("train.py", (), {"localhost": [0]}, True, False, "127.0.0.1", 29500)


def visit(**changes) -> Visit:
    return Visit("node1", {**GOOD, **changes}, asked=1000.0, answered=1001.0)


def problems(seen: Visit, slots=(0, 1)) -> list[str]:
    return preflight.problems_of(seen, GOOD, list(slots))


def test_a_host_like_this_one_has_no_problems():
    assert problems(visit()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": "3.10.2"}, "python 3.10.2 differs from 3.11.7 here"),
        ({"project": "ffff"}, "project ffff differs from 0123456789ab here"),
        ({"packages": {"torch": "2.12.0", "numpy": "2.4.6"}}, "torch 2.12.0 differs from 2.13.0 here"),
        ({"packages": {"torch": "2.13.0"}}, "numpy missing differs from 2.4.6 here"),
        ({"gpus": None}, "no GPU (for processes on CPUs set DS_ACCELERATOR=cpu)"),
        ({"gpus": GOOD["gpus"][:1]}, "slot 1 was asked for, and there are 1 GPUs"),
        ({"gpus": [GOOD["gpus"][0], {"used": 40000, "total": 81559}]}, "GPU 1 is in use (40000 MiB)"),
        ({"time": 1013.0}, "its clock is 12 s ahead"),
        ({"time": 900.0}, "its clock is 100 s behind"),
    ],
)
def test_each_difference_is_named(changes, message):
    assert problems(visit(**changes)) == [message]


def test_a_clock_is_only_called_wrong_where_its_answer_cannot_be_right():
    assert preflight.clock_offset(visit(time=1000.0)) == 0
    assert problems(visit(time=1001.9)) == []


def test_devices_do_not_matter_to_processes_on_cpus():
    assert problems(visit(gpus=None), slots=()) == []


def test_the_table_shows_every_host_and_what_differs():
    lost = Visit("node22", trouble="No route to host")
    lines = preflight.table([visit(project="ffff"), lost], GOOD).splitlines()
    assert [line.split()[:2] for line in lines] == [["host", "reached"], ["node1", "yes"], ["node22", "NO"]]
    assert "DIFFERS" in lines[1]
    assert "2/2 free" in lines[1]


def test_the_facts_need_nothing_but_python():
    """Isolated from site-packages and from this package, as on a host where nothing is installed."""
    script = str(Path(facts.__file__))
    done = subprocess.run(
        [sys.executable, "-ISE", script], capture_output=True, text=True, check=True, cwd="/"
    )
    told = json.loads(done.stdout.partition(facts.MARK)[2])
    assert told["project"] == facts.project_digest(facts.ROOT)
    assert told["packages"] == {}


def test_another_source_is_another_project(tmp_path):
    (tmp_path / "train.py").write_text("pass")
    before = facts.project_digest(tmp_path)
    (tmp_path / "train.py").write_text("pass ")
    assert facts.project_digest(tmp_path) != before


def test_a_bad_host_is_named_before_any_process_meets(monkeypatch):
    monkeypatch.setattr(preflight, "_visit_all", lambda job: [Visit("localhost", trouble="No route to host")])
    started = []
    with pytest.raises(LaunchError, match="^preflight: localhost: No route to host; "):
        preflight.run_preflight(JOB, started.append)
    assert started == []


def test_hosts_are_called_on_as_the_launcher_does(monkeypatch):
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p 2222")
    asked = []
    monkeypatch.setattr(preflight, "_visit", lambda host, command: asked.append((host, command)))
    here = preflight.facts.socket.gethostname()
    for launcher in ("pdsh", "openmpi"):
        hosts = {here: [0], "node2": [0]}
        preflight._visit_all(replace(JOB, hosts=hosts, is_local=False, launcher=launcher))
    ways = {(host, command[0], "2222" in command) for host, command in asked}
    # mpirun starts the processes of this machine by itself.
    assert ways == {
        (here, "ssh", True),
        ("node2", "ssh", True),
        (here, sys.executable, False),
        ("node2", "ssh", False),
    }


def test_processes_that_do_not_meet_end_the_preflight():
    with pytest.raises(LaunchError, match="could not meet"):
        preflight.run_preflight(JOB, lambda script: 1)

"""deepy.py from outside."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from tests.common.paths import ROOT
from tests.common.ports import quiet_ports
from tests.unit.neox_arguments.basic import minimal

WORKER = """
import json, os, sys
from megatron.neox_arguments import NeoXArgs
args = NeoXArgs.consume_neox_args()
args.configure_distributed_args()
record = [args.rank, args.world_size, args.hidden_size, args.config_files, "torch" in sys.modules]
open(f"said_{args.rank}.json", "w").write(json.dumps(record))
"""


def deepy(*arguments, cwd) -> subprocess.CompletedProcess:
    """Run deepy.py to its end."""
    skipped = ("RANK", "WORLD_SIZE", "DLTS_HOSTFILE", "MASTER_PORT", "MASTER_ADDR")
    environment = {key: value for key, value in os.environ.items() if key not in skipped}
    return subprocess.run(
        [sys.executable, str(ROOT / "deepy.py"), *map(str, arguments)],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    """A folder with a worker script and a configuration for two processes."""
    (tmp_path / "worker.py").write_text(WORKER)
    config = minimal(global_num_gpus=None, num_gpus=2, master_port=quiet_ports(1)[0])
    (tmp_path / "model.yml").write_text(json.dumps(config))
    return tmp_path


def test_the_configuration_reaches_every_worker(folder):
    done = deepy("worker.py", "model", cwd=folder)
    assert done.returncode == 0, done.stderr
    said = [json.loads((folder / f"said_{rank}.json").read_text()) for rank in range(2)]
    texts = {"model.yml": (folder / "model.yml").read_text()}
    assert said == [[rank, 2, 64, texts, False] for rank in range(2)]
    assert "hidden_size" in done.stdout and "seed" not in done.stdout
    assert "worker.py on 2 CPU processes (localhost slots 0-1)" in done.stdout


def test_torchrun_style_variables_start_a_script_as_well(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    subprocess.run([sys.executable, "worker.py", "model.yml"], cwd=folder, env=environment, check=True)
    assert json.loads((folder / "said_1.json").read_text())[:3] == [1, 2, 64]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sizes": 3}, "error: unknown key 'hidden_sizes'; did you mean 'hidden_size'?"),
        ({"seed": "one"}, "error: seed='one' must be a whole number"),
        ({"model_parallel_size": 4}, "error: the job has 2 processes, which is not a multiple of"),
        (
            {"include": "elsewhere:0"},
            "error: include='elsewhere:0' names host 'elsewhere'; known hosts: localhost",
        ),
    ],
)
def test_a_users_mistake_is_one_line(folder, change, message):
    (folder / "change.yml").write_text(json.dumps(change))
    done = deepy("worker.py", "model", "change", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_a_port_in_use_is_one_line_before_anything_starts(folder):
    with socket.socket() as listener:
        listener.bind(("", json.loads((folder / "model.yml").read_text())["master_port"]))
        listener.listen()
        done = deepy("worker.py", "model", cwd=folder)
    assert done.returncode == 1 and not list(folder.glob("said_*"))
    assert re.fullmatch(
        r"error: master_port=\d+ is in use on 127.0.0.1; set another one, .*: \d+\n", done.stderr
    )


def test_a_dry_run_starts_nothing_and_writes_nothing(folder):
    before = sorted(path.name for path in folder.iterdir())
    done = deepy("worker.py", "model", "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "parameters    3,321,600" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_command_of_a_dry_run_can_be_run(folder):
    plan = deepy("worker.py", "model", "--dry-run", cwd=folder).stdout
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(plan.splitlines()[-1], shell=True, cwd=folder, env=environment, check=True)
    assert json.loads((folder / "said_0.json").read_text())[:3] == [0, 2, 64]

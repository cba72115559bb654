"""Trackers record a run when they are asked to, and only then; without them training goes on."""

import builtins
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from megatron.common.errors import MissingPackageError
from megatron.logging import Metrics
from megatron.logging.sinks.comet import CometSink
from megatron.logging.sinks.wandb import WandbSink, start_run
from megatron.neox_arguments import NeoXArgs
from megatron.utils import get_wandb_api_key, init_wandb
from tests.common.components import needs_package
from tests.common.paths import ROOT
from tests.unit.neox_arguments.basic import minimal

VARIABLES = ("WANDB_API_KEY", "WANDB_LOCAL", "WANDB_MODE", "COMET_API_KEY", "COMET_OFFLINE_DIRECTORY")
# A process of its own, for the packages leave threads and hooks behind; one for all, for they are slow to import.
RECORD = """
import json, os, sys
from megatron.logging import Metrics
from megatron.neox_arguments import NeoXArgs
for key in ("use_wandb", "use_comet"):
    metrics = Metrics(NeoXArgs.from_dict({**json.loads(sys.argv[1]), key: True}))
    print(key, "without a key:", len(metrics.sinks), flush=True)
    print("end", key, file=sys.stderr, flush=True)
sys.modules["wandb"].teardown()  # It looks at the environment once.
os.environ["WANDB_MODE"], os.environ["COMET_OFFLINE_DIRECTORY"] = "offline", "comet"
args = NeoXArgs.from_dict(json.loads(sys.argv[2]))
args.enable_logging()
if args.use_comet:
    args.initialize_comet()
metrics = Metrics(args)
for step in (1, 2):
    metrics.log({"train/lm_loss": 4.0 / step, "train/loss_scale": None}, step)
metrics.log({"validation/lm_loss": 2.5}, 2)
print("sinks", len(metrics.sinks))
metrics.close()
print("open", len(metrics.sinks))
"""
SETTINGS = {
    "use_wandb": True, "wandb_project": "project", "wandb_group": "group", "wandb_run_name": "name",
    "wandb_team": "team", "wandb_host": "https://wandb.example.org",
    "use_comet": True, "comet_project": "project", "comet_workspace": "workspace", "comet_experiment_name": "name",
    "comet_tags": ["a", "b"], "comet_others": {"kind": "test"}, "log_dir": "logs",
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """(folder, outcome) of a process that tries both trackers without a key, and logs three times to both offline."""
    needs_package("wandb", "comet_ml")
    folder = tmp_path_factory.mktemp("trackers")
    environment = {key: value for key, value in os.environ.items() if key not in (*VARIABLES, "NETRC")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", RECORD, json.dumps(minimal()), json.dumps(minimal(**SETTINGS))]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return folder, done


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)


def config(**settings) -> NeoXArgs:
    return NeoXArgs.from_dict(minimal(**settings))


def wandb_records(path) -> list:
    """The messages of a file of an offline run: blocks of 32 KiB as in LevelDB's logs, after seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, found, partial = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        partial += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(partial))
            partial = b""
    return found


def test_no_tracker_is_lost_and_nothing_is_warned_of(recorded):
    _, done = recorded
    assert "sinks 3\n" in done.stdout and "open 3\n" in done.stdout
    assert "warning:" not in done.stderr.rpartition("end use_comet")[2]


def test_an_offline_run_of_wandb_has_the_config_and_the_values(recorded):
    (file,) = recorded[0].glob("wandb/offline-run-*/run-*.wandb")
    records = wandb_records(file)
    (run,) = {
        (r.run.project, r.run.run_group, r.run.display_name, r.run.entity) for r in records if r.run.project
    }
    assert run == ("project", "group", "name", "team")
    recorded = {item.key: item.value_json for r in records for item in r.run.config.update}
    assert (
        recorded["hidden_size"] == str(minimal()["hidden_size"]) and json.loads(recorded["use_wandb"]) is True
    )
    rows = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.history.item
    ]
    values = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert values == [{"train/lm_loss": 4.0}, {"train/lm_loss": 2.0, "validation/lm_loss": 2.5}]
    assert [row["_step"] for row in rows] == [1, 2]


def test_an_offline_archive_of_comet_has_the_config_and_the_values(recorded):
    (file,) = recorded[0].glob("comet/*.zip")
    with zipfile.ZipFile(file) as archive:
        experiment = json.loads(archive.read("experiment.json"))
        messages = [json.loads(line) for line in archive.read("messages.json").splitlines() if line]
    assert (experiment["project_name"], experiment["workspace"]) == ("project", "workspace")
    assert set(experiment["tags"]) == {"a", "b"}
    others = {m["payload"]["key"]: m["payload"]["value"] for m in messages if m["type"] == "log_other"}
    assert others["Name"] == "name" and others["kind"] == "test" and others["Created from"] == "gpt-neox"
    parameters = [m["payload"]["param"] for m in messages if "param" in m["payload"]]
    assert minimal()["hidden_size"] in [
        p["paramValue"] for p in parameters if p["paramName"] == "hidden_size"
    ]
    metrics = [m["payload"]["metric"] for m in messages if m["type"] == "metric_msg"]
    logged = [(m["metricName"], m["metricValue"], m["step"]) for m in metrics if "/" in m["metricName"]]
    assert logged == [("train/lm_loss", 4.0, 1), ("train/lm_loss", 2.0, 2), ("validation/lm_loss", 2.5, 2)]


@pytest.mark.parametrize(
    ("key", "hint"), [("use_wandb", "WANDB_API_KEY"), ("use_comet", "COMET_OFFLINE_DIRECTORY")]
)
def test_without_a_key_training_goes_on_with_one_warning(recorded, key, hint):
    _, done = recorded
    part = done.stderr.partition(f"end {key}\n")[0].rpartition("end use_wandb\n")[2]
    (line,) = [line for line in part.splitlines() if line.startswith("warning:")]
    assert "failed and is switched off" in line and f"{key} found no API key" in line and hint in line
    assert f"{key} without a key: 0\n" in done.stdout


@pytest.mark.parametrize(("key", "package"), [("use_wandb", "wandb"), ("use_comet", "comet_ml")])
def test_without_the_package_training_goes_on_with_one_line_that_says_what_to_install(
    key, package, monkeypatch, capfd
):
    monkeypatch.setitem(sys.modules, package, None)
    metrics = Metrics(config(**{key: True}))
    metrics.log({"loss": 1.0}, 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{key} needs the package '{package}': pip install -r requirements/requirements-" in line
    assert metrics.sinks == []


def test_a_key_of_a_tracker_alone_starts_nothing(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("COMET_API_KEY", "k")
    imported, original = [], builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *rest: imported.append(name) or original(name, *rest)
    )
    args = config(wandb_group="group", comet_project="project")
    assert Metrics(args).sinks == [] and init_wandb(args) is None
    assert not {"wandb", "comet_ml"} & set(imported)


def test_only_rank_0_has_trackers_unless_wandb_is_wanted_on_all():
    everywhere, alone = (
        config(use_wandb=True, wandb_init_all_ranks=True),
        config(use_wandb=True, use_comet=True),
    )
    assert WandbSink.wanted(everywhere, 1) and not WandbSink.wanted(alone, 1) and WandbSink.wanted(alone, 0)
    assert CometSink.wanted(alone, 0) and not CometSink.wanted(alone, 1)


def test_a_tracker_that_fails_amid_training_is_switched_off_with_one_line(monkeypatch, capfd):
    class Run:
        def log(self, values, step):
            raise RuntimeError("the server\nis gone")

    monkeypatch.setattr("megatron.logging.sinks.wandb.start_run", lambda args: Run())
    metrics = Metrics(config(use_wandb=True))
    for step in (1, 2):
        metrics.log({"loss": 1.0}, step)
    metrics.close()
    expected = "warning: WandbSink failed and is switched off: the server is gone\n"
    assert capfd.readouterr().err == expected


def test_a_run_that_fails_is_closed_as_one_that_failed(monkeypatch):
    codes = []

    class Run:
        def finish(self, exit_code):
            codes.append(exit_code)

    monkeypatch.setattr("megatron.logging.sinks.wandb.start_run", lambda args: Run())
    with Metrics(config(use_wandb=True)):
        pass
    with pytest.raises(ValueError, match="bad"), Metrics(config(use_wandb=True)):
        raise ValueError("bad")
    assert codes == [0, 1]


def test_the_key_of_wandb_is_the_environments_or_that_of_the_host_in_netrc(tmp_path, monkeypatch):
    args = config(wandb_host="https://wandb.example.org")
    assert get_wandb_api_key(args) is None
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert get_wandb_api_key(args) == "secret" and get_wandb_api_key(config()) is None
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert get_wandb_api_key(args) == "key"
    monkeypatch.setenv("WANDB_LOCAL", "1")
    assert get_wandb_api_key(args) == "LOCAL"


def test_a_run_asked_for_by_name_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match="requirements-wandb"):
        start_run(config(use_wandb=True))


def test_the_group_of_a_job_is_the_given_one_or_made_up_once(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(json.dumps(minimal(use_wandb=True)))
    made_up = [NeoXArgs.consume_deepy_args(["train.py", str(path)]).wandb_group for _ in range(2)]
    assert all(group.startswith("run-") for group in made_up) and made_up[0] != made_up[1]
    given = NeoXArgs.consume_deepy_args(["train.py", str(path), "--wandb_group", "mine"])
    assert given.wandb_group == "mine"

"""What the processes of other hosts get to know of this one's environment."""

import os
from types import SimpleNamespace

import pytest

from megatron.common.errors import LaunchError
from megatron.launcher.exports import exports, inherited, read_environment_file

KEYS = {"WANDB_API_KEY": "w", "COMET_API_KEY": "c"}


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))


def job(*trackers: str, **keys: str) -> SimpleNamespace:
    return SimpleNamespace(trackers=trackers, keys=keys)


def test_settings_of_libraries_travel_and_a_hosts_own_do_not():
    here = {
        "NCCL_IB_HCA": "mlx5_0,mlx5_1",
        "OMP_NUM_THREADS": "3",
        "DS_ACCELERATOR": "cpu",
        "LOGLEVEL": "DEBUG",
        "NEOX_WEIGHT_TOKEN": "secret",
    }
    own = {"PATH": "/bin", "HOSTNAME": "here", "RANK": "3", "CUDA_VISIBLE_DEVICES": "0", "PYTHONHOME": "/x"}
    assert exports(job(), here | own) == {**here, "PYTHONPATH": os.getcwd()}
    assert exports(job(), {"PYTHONPATH": "/mine"}) == {"PYTHONPATH": f"{os.getcwd()}:/mine"}


def test_a_trackers_key_travels_only_where_it_is_used():
    asked = exports(job("wandb"), {**KEYS, "WANDB_MODE": "offline"})
    assert asked["WANDB_API_KEY"] == "w" and asked["WANDB_MODE"] == "offline" and "COMET_API_KEY" not in asked
    assert not KEYS.keys() & exports(job(), KEYS).keys()
    assert exports(job("wandb", WANDB_API_KEY="from netrc"), {})["WANDB_API_KEY"] == "from netrc"
    assert inherited(job("comet"), {**KEYS, "PATH": "/bin"}) == {"COMET_API_KEY": "c", "PATH": "/bin"}


def test_the_working_folders_file_wins_over_the_homes(tmp_path):
    (tmp_path / ".deepspeed_env").write_text("A=home\nB=home\n")
    (tmp_path / "work" / ".deepspeed_env").write_text(
        "# comment\n\nexport B = here and there \nNCCL_DEBUG=WARN\nC=a=b\n"
    )
    found = exports(job(), {"NCCL_DEBUG": "INFO"})
    assert [found[name] for name in ("A", "B", "C", "NCCL_DEBUG")] == [
        "home",
        "here and there",
        "a=b",
        "WARN",
    ]
    (tmp_path / "work" / "other").write_text("A=other\n")
    assert exports(job(), {"DS_ENV_FILE": "other"}) == {"A": "other", "PYTHONPATH": os.getcwd()} | {
        "DS_ENV_FILE": "other"
    }


@pytest.mark.parametrize("line", ["NCCL_DEBUG", "1A=2", "A B=3"])
def test_a_line_that_sets_nothing_is_named(tmp_path, line):
    path = tmp_path / "env"
    path.write_text(f"A=1\n{line}\n")
    with pytest.raises(LaunchError, match=f"env, line 2: '{line}' is not of the form NAME=VALUE"):
        read_environment_file(path)

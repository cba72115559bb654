import socket

import pytest

from megatron.common import hosts
from megatron.common.errors import LaunchError

POOL = {"one": [0, 1, 2, 3], "two": [0, 1]}


def test_host_files_may_hold_comments_and_blank_lines(tmp_path):
    (tmp_path / "hosts").write_text("# cluster\n\none  slots=4 # big\ntwo slots=2\n")
    assert hosts.read_hostfile(tmp_path / "hosts") == {"one": 4, "two": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one slots=4\none slots=2", "line 2: host 'one' is listed twice"),
        ("one", "line 1: 'one' is not of the form NAME slots=N"),
        ("one slots=x", "is not of the form"),
        ("# nothing", "names no host"),
    ],
)
def test_malformed_host_files_are_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(LaunchError, match=message):
        hosts.read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, POOL),
        ("two", None, {"two": [0, 1]}),
        ("two@one:3,0", None, {"two": [0, 1], "one": [0, 3]}),
        (None, "two", {"one": [0, 1, 2, 3]}),
        (None, "one:1,2@two:0", {"one": [0, 3], "two": [1]}),
    ],
)
def test_filters_choose_hosts_and_slots(include, exclude, expected):
    assert hosts.filter_pool(POOL, include, exclude) == expected


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("three", None, "names host 'three'; known hosts: one, two"),
        ("two:2", None, "names slot 2 of 'two', which has 2 slots"),
        (None, "one@two", "leaves no slot"),
        ("one:a", None, "is not of the form HOST"),
        ("one", "two", "include and exclude are both set"),
    ],
)
def test_filters_that_name_nothing_real_are_refused(include, exclude, message):
    with pytest.raises(LaunchError, match=message):
        hosts.filter_pool(POOL, include, exclude)


def test_asking_for_more_than_there_is_is_refused(tmp_path):
    (tmp_path / "hosts").write_text("one slots=4\ntwo slots=2\n")
    with pytest.raises(LaunchError, match="num_nodes=3, but there are only 2 hosts"):
        hosts.resource_pool(str(tmp_path / "hosts"), num_nodes=3)
    with pytest.raises(LaunchError, match="num_gpus=3, but host 'two' has 2 slots"):
        hosts.resource_pool(str(tmp_path / "hosts"), num_gpus=3)


def test_the_key_wins_over_the_environment_and_that_over_the_usual_place(monkeypatch, tmp_path):
    files = [tmp_path / name for name in ("key", "environment", "usual")]
    for file in files:
        file.write_text("one slots=1\n")
    monkeypatch.setenv("DLTS_HOSTFILE", str(files[1]))
    monkeypatch.setattr(hosts, "DEFAULT_HOSTFILE", str(files[2]))
    assert hosts.find_hostfile(str(files[0])) == str(files[0])
    assert hosts.find_hostfile(None) == str(files[1])
    monkeypatch.delenv("DLTS_HOSTFILE")
    assert hosts.find_hostfile(None) == str(files[2])
    files[2].unlink()
    assert hosts.find_hostfile(None) is None


def test_without_a_host_file_filters_speak_of_this_machine(monkeypatch):
    monkeypatch.delenv("DLTS_HOSTFILE", raising=False)
    monkeypatch.setattr(hosts, "accelerator_count", lambda: 4)
    assert hosts.resource_pool(None) == {}
    assert hosts.resource_pool("/no/such/file", include="localhost:1,3") == {"localhost": [1, 3]}
    assert hosts.resource_pool(None, exclude="localhost:0") == {"localhost": [1, 2, 3]}
    monkeypatch.setattr(hosts, "accelerator_count", lambda: 0)
    assert hosts.resource_pool(None, include="localhost:1,3") == {"localhost": [1, 3]}


def test_a_slurm_allocation_is_filtered_like_a_host_file(monkeypatch, tmp_path):
    monkeypatch.delenv("DLTS_HOSTFILE", raising=False)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    both = [0, 1]
    assert hosts.resource_pool(None, launcher="slurm") == {"n1": both, "n2": both, "n3": both}
    assert hosts.resource_pool(None, include="n3@n1", launcher="slurm").keys() == {"n1", "n3"}
    assert hosts.resource_pool(None, exclude="n2", launcher="slurm").keys() == {"n1", "n3"}
    assert hosts.resource_pool(None, num_nodes=1, num_gpus=1, launcher="slurm") == {"n1": [0]}
    with pytest.raises(LaunchError, match="only 3 hosts"):
        hosts.resource_pool(None, num_nodes=4, launcher="slurm")
    (tmp_path / "hosts").write_text("n2 slots=1\n")
    assert hosts.resource_pool(str(tmp_path / "hosts"), launcher="slurm") == {"n2": [0]}
    assert hosts.resource_pool(None, launcher="pdsh") == {}


def test_a_free_port_is_none_that_an_outgoing_connection_may_take_nor_one_in_use(monkeypatch):
    with socket.socket() as other:
        other.bind(("", port := hosts.free_port()))
        other.listen()
        drawn = iter([port - hosts._LOWEST_PORT] * 2 + list(range(100)))
        monkeypatch.setattr(hosts.secrets, "randbelow", lambda count: next(drawn))
        found = hosts.free_port()
    assert found != port and 20_000 <= found < 32_000

"""Downloads are resumed, checked and never half there."""

import hashlib
import json
import os

import pytest

from megatron.common.errors import DataError
from megatron.data.corpora.fetch import ATTEMPTS, fetch

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def get(site, tmp_path, waits):
    site.files["/a.bin"] = CONTENT

    def run(name="a.bin", **options) -> bytes:
        fetch(f"{site.url}/{name}", tmp_path / "sub" / "a.bin", sleep=waits.append, **options)
        assert os.listdir(tmp_path / "sub") == ["a.bin"]
        return (tmp_path / "sub" / "a.bin").read_bytes()

    return run


def test_a_file_arrives_whole_and_alone(get, waits):
    assert get(sha256=hashlib.sha256(CONTENT).hexdigest()) == CONTENT
    assert waits == []


def test_a_lost_connection_is_taken_up_where_it_broke(get, site, waits):
    site.faults = ["cut", "cut"]
    assert get() == CONTENT
    half = len(CONTENT) // 2
    assert [part for _, part in site.requests] == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert waits == [1.0, 2.0]


def test_a_busy_server_is_asked_again(get, site, waits):
    site.faults = [503, 429, 500]
    assert get() == CONTENT
    assert waits == [1.0, 2.0, 4.0]


def test_a_later_call_completes_what_an_interrupted_one_left(get, site, tmp_path):
    site.faults = ["cut"] + [500] * (ATTEMPTS - 1)
    with pytest.raises(DataError, match="500"):
        get()
    assert not (tmp_path / "sub" / "a.bin").exists()
    assert (tmp_path / "sub" / "a.bin.part").stat().st_size == len(CONTENT) // 2
    site.requests.clear()
    assert get() == CONTENT
    assert site.requests == [("/a.bin", f"bytes={len(CONTENT) // 2}-")]


def test_a_download_that_only_lacked_its_name_is_not_fetched_again(get, site, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin.part").write_bytes(CONTENT)
    note = {"url": f"{site.url}/a.bin", "total": len(CONTENT), "validator": '"x"'}
    (tmp_path / "sub" / "a.bin.part.json").write_text(json.dumps(note))
    assert get() == CONTENT
    assert site.requests == []


def test_two_versions_of_a_file_are_never_joined(get, site):
    site.faults = ["cut"] + [500] * (ATTEMPTS - 1)
    with pytest.raises(DataError):
        get()
    site.files["/a.bin"] = changed = CONTENT[::-1] + b"more"
    assert get() == changed


@pytest.mark.parametrize("lacking", ["ranges", "tags"])
def test_servers_that_cannot_resume_start_again(lacking, get, site):
    setattr(site, lacking, False)
    site.faults = ["cut"]
    assert get() == CONTENT
    assert len(site.requests) == 2


@pytest.mark.parametrize("status", [404, 403])
def test_a_file_that_is_not_there_fails_at_once(status, get, site, waits):
    site.faults = [status]
    with pytest.raises(DataError, match=f"cannot download {site.url}/a.bin: the server answers {status}"):
        get()
    assert waits == []


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(site, tmp_path):
    site.files["/a.bin"] = CONTENT
    with pytest.raises(DataError, match="checksum"):
        fetch(f"{site.url}/a.bin", tmp_path / "a.bin", sha256="0" * 64)
    assert os.listdir(tmp_path) == []


def test_a_file_address_is_copied(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    fetch(f"file://{tmp_path}/a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CONTENT
    with pytest.raises(DataError, match="cannot download"):
        fetch(f"file://{tmp_path}/nowhere", tmp_path / "c")


def test_other_schemes_and_closed_ports_are_one_line_errors(tmp_path, waits):
    with pytest.raises(DataError, match="must start with"):
        fetch("ftp://host/file", tmp_path / "a")
    with pytest.raises(DataError, match="cannot download http://127.0.0.1:1/a"):
        fetch("http://127.0.0.1:1/a", tmp_path / "a", sleep=waits.append)
    assert len(waits) == ATTEMPTS - 1

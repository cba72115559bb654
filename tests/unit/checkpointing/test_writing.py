"""Files are summed up while they are written, and no failure of writing is lost."""

import errno
import os
import threading
import time

import pytest
import torch

from megatron.checkpointing import writing
from megatron.checkpointing.manifest import file_record
from megatron.checkpointing.snapshot import HostMemory, snapshot


@pytest.mark.parametrize("sizes", [[], [3], [100_000], [1_000_000, 5, 30_000_000]])
def test_the_record_is_that_of_the_file(tmp_path, sizes):
    state = {str(size): torch.arange(float(size)) for size in sizes}
    record = writing.write_tensors(state, tmp_path / "x.pt")
    assert record == file_record(tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("function", ["fsync", "fdatasync"])
def test_what_the_system_reports_late_is_a_failure_too(tmp_path, function, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="Input/output error"):
        writing.write_tensors({"x": torch.zeros(20_000_000)}, tmp_path / "x.pt")


def test_nothing_is_synced_any_more_when_the_file_is_closed(tmp_path, monkeypatch):
    def save(state, file):
        while not started.wait(0.01):  # until the helper has done its first, empty task
            file.write(b"part")
        raise RuntimeError("no memory")

    def sync(handle):
        started.set()
        time.sleep(0.1)  # longer than closing takes
        os.fstat(handle)
        synced.append(handle)
        return 0

    started, synced = threading.Event(), []
    monkeypatch.setattr(writing, "_SYNC_EVERY", 1)
    monkeypatch.setattr(writing, "_sync", sync)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="no memory"):
        writing.write_tensors({}, tmp_path / "x.pt")
    assert synced


def test_a_full_disk_is_reported_as_what_it_is():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="No space left"):
        writing.write_tensors({"x": torch.zeros(2_000_000)}, "/dev/full")


def test_what_fails_once_is_tried_again(monkeypatch):
    monkeypatch.setattr(writing, "PAUSE_SECONDS", 0.0)
    left = [OSError("one"), RuntimeError("two")]

    def act():
        if left:
            raise left.pop()
        return "done"

    assert writing.retried(act) == "done"
    left[:] = [OSError("x")] * 3
    with pytest.raises(OSError):
        writing.retried(act)


def test_a_snapshot_is_equal_shares_what_was_shared_and_does_not_change():
    flat = torch.arange(10.0)
    state = {"a": flat[:4], "b": [flat[4:], 3, {"lr": 0.1}], "c": (flat[:4], torch.zeros(0)), "none": None}
    copied = snapshot(state, HostMemory())
    expected = [value.clone() for value in (flat[:4], flat[4:])]
    flat.zero_()
    state["b"][2]["lr"] = 0.2
    assert torch.equal(copied["a"], expected[0]) and torch.equal(copied["b"][0], expected[1])
    assert copied["b"][1:] == [3, {"lr": 0.1}] and copied["none"] is None
    assert copied["c"][0] is copied["a"] and copied["c"][1].shape == (0,)
    # A part of something larger is saved alone.
    assert copied["a"].untyped_storage().nbytes() == 16


def test_the_room_of_a_snapshot_is_used_again():
    memory, value = HostMemory(), {"x": torch.ones(1000), "y": torch.ones(1000)}
    first = snapshot(value, memory)
    places = {first[name].data_ptr() for name in value}
    memory.release()
    again = snapshot(value, memory)
    assert {again[name].data_ptr() for name in value} == places
    # Not while it is in use.
    assert {snapshot(value, memory)[name].data_ptr() for name in value}.isdisjoint(places)

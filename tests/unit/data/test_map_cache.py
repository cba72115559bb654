"""Caches of index maps: keyed by content, complete or invisible, built once by however many processes."""

import json
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest

from megatron.common.errors import DataError
from megatron.data import map_cache
from tests.unit.data.samples import make_gpt2, numbered, random_sizes, texts, write_dataset


@pytest.fixture
def place(tmp_path):
    return tmp_path / "data_index_maps"


def build_five():
    return {"numbers": np.arange(5)}, {"why": "because"}


def never():
    pytest.fail("built although a complete entry exists")


def entries(place):
    return sorted(path for path in place.iterdir() if not path.name.startswith("."))


def test_the_second_reader_builds_nothing(place):
    first = map_cache.load_or_build(place, "train", {"seed": 1}, build_five)
    again = map_cache.load_or_build(place, "train", {"seed": 1}, never)
    for stored in (first, again):
        assert stored.arrays["numbers"].tolist() == [0, 1, 2, 3, 4]
        assert stored.facts == {"why": "because"}
    assert pickle.loads(pickle.dumps(again)).arrays["numbers"].tolist() == [0, 1, 2, 3, 4]


def test_large_arrays_are_mapped_not_read(place):
    def build():
        return {"numbers": np.arange(map_cache.MAP_ABOVE_BYTES // 8)}, {}

    array = map_cache.load_or_build(place, "train", {}, build).arrays["numbers"]
    assert isinstance(array.base, np.memmap) and not array.flags.writeable


def test_another_key_is_another_entry(place):
    for seed in (1, 2):
        map_cache.load_or_build(place, "train", {"seed": seed}, build_five)
    assert len(entries(place)) == 2


def damage_truncate(entry):
    os.truncate(entry / "numbers.npy", 140)


def damage_shape(entry):
    np.save(entry / "numbers.npy", np.arange(4))


def damage_record(entry):
    (entry / map_cache.RECORD).write_text('{"key": ')


def damage_missing(entry):
    (entry / "numbers.npy").unlink()


def damage_foreign(entry):
    record = json.loads((entry / map_cache.RECORD).read_text())
    (entry / map_cache.RECORD).write_text(json.dumps({**record, "key": {"seed": 7}}))


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_shape, damage_record, damage_missing, damage_foreign]
)
def test_a_damaged_entry_is_built_again(place, damage):
    map_cache.load_or_build(place, "train", {"seed": 1}, build_five)
    damage(entries(place)[0])
    stored = map_cache.load_or_build(place, "train", {"seed": 1}, build_five)
    assert stored.arrays["numbers"].tolist() == [0, 1, 2, 3, 4]
    map_cache.load_or_build(place, "train", {"seed": 1}, never)


def test_a_failed_build_leaves_nothing(place):
    def fail():
        raise DataError("no")

    with pytest.raises(DataError):
        map_cache.load_or_build(place, "train", {}, fail)
    assert entries(place) == []


def test_left_overs_of_killed_builders_are_removed(place):
    place.mkdir()
    old, new = place / ".train.1.tmp", place / ".train.2.tmp"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    map_cache.load_or_build(place, "train", {}, build_five)
    assert not old.exists() and new.exists()


def test_where_the_data_cannot_be_written_the_users_cache_is_used(place, tmp_path, monkeypatch, capsys):
    place.write_text("a file where the folder should be: nobody can write here, whatever his rights")
    monkeypatch.setenv("NEOX_CACHE_PATH", str(tmp_path / "cache"))
    map_cache.load_or_build(place, "train", {}, build_five)
    map_cache.load_or_build(place, "train", {}, never)
    assert str(tmp_path / "cache") in capsys.readouterr().out
    assert len(list((tmp_path / "cache" / "index_maps").iterdir())) == 1


def test_where_nothing_can_be_written_the_error_says_what_to_set(place, tmp_path, monkeypatch):
    for path in (place, tmp_path / "cache"):
        path.write_text("not a folder")
    monkeypatch.setenv("NEOX_CACHE_PATH", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="NEOX_CACHE_PATH"):
        map_cache.load_or_build(place, "train", {}, build_five)


def build_slowly(place, log, start, pause, shared=True, lock=True):
    def build():
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(pause)
        return build_five()

    if not lock:
        map_cache.file_lock = no_lock
    start.wait()
    stored = map_cache.load_or_build(place, "train", {"seed": 1}, build, shared)
    assert stored.arrays["numbers"].tolist() == [0, 1, 2, 3, 4]


class no_lock:
    """A file system without locks."""

    def __init__(self, path, what):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *details):
        pass


def race(place, log, count, pause, **options):
    context = multiprocessing.get_context("fork")
    start = context.Event()
    processes = [
        context.Process(target=build_slowly, args=(place, log, start, pause), kwargs=options)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    start.set()
    return processes


def finish(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_processes_that_start_together_build_once(place, tmp_path):
    assert finish(race(place, tmp_path / "log", 6, 0.3)) == [0] * 6
    assert len((tmp_path / "log").read_text().split()) == 1
    assert len(entries(place)) == 1


def test_without_file_locks_all_are_right_and_one_entry_stays(place, tmp_path):
    assert finish(race(place, tmp_path / "log", 4, 0.1, lock=False)) == [0] * 4
    assert len(entries(place)) == 1
    assert [path for path in place.iterdir() if path.name.endswith(".tmp")] == []


def test_a_builder_that_is_killed_is_replaced(place, tmp_path):
    log = tmp_path / "log"
    processes = race(place, log, 3, 0.5)
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.01)
    os.kill(int(log.read_text()), signal.SIGKILL)
    assert sorted(finish(processes)) == [-signal.SIGKILL, 0, 0]
    assert len(log.read_text().split()) == 2
    assert len(entries(place)) == 1


def test_machines_without_a_shared_file_system_do_not_wait_for_each_other(place, monkeypatch):
    monkeypatch.setattr(map_cache.socket, "gethostname", lambda: "node7")
    map_cache.load_or_build(place, "train", {}, build_five, shared=False)
    assert (place / ".lock-node7").exists() and not (place / ".lock").exists()


def test_maps_are_not_reused_when_what_they_depend_on_changes(tmp_path):
    prefix = write_dataset(tmp_path / "data", numbered(random_sizes(40)))
    folder = tmp_path / "data_index_maps"
    make_gpt2(prefix, 20)
    variants = [
        {"num_samples": 30},
        {"num_samples": 20, "seq_length": 9},
        {"num_samples": 20, "documents": range(10, 30)},
        {"num_samples": 20, "documents": np.array([5, 3, 1])},
        {"num_epochs": 1},
        {"num_samples": 20, "pack_impl": "unpacked"},
        {"num_samples": 20, "pack_impl": "unpacked", "allow_chopped": False},
    ]
    for count, variant in enumerate(variants, 2):
        make_gpt2(prefix, **variant)
        assert len(entries(folder)) == count, variant
    make_gpt2(prefix, 20, documents=np.arange(40))
    make_gpt2(prefix, 20, allow_chopped=False)
    assert len(entries(folder)) == count, "the same samples were mapped twice"


def test_changed_data_under_the_same_name_gets_new_maps(tmp_path):
    prefix = write_dataset(tmp_path / "data", numbered([3, 4, 5, 6]))
    before = texts(make_gpt2(prefix, 3))
    write_dataset(tmp_path / "data", numbered([6, 5, 4, 3]))
    after = texts(make_gpt2(prefix, 3))
    assert before != after and len(entries(tmp_path / "data_index_maps")) == 2


def test_changed_labels_get_new_maps_of_whole_documents(tmp_path):
    from megatron.data.indexed_dataset import open_dataset

    prefix = write_dataset(tmp_path / "data", numbered([3, 4]))
    for labels in ([[-100] * 3, [1] * 4], [[1] * 3, [-100] * 4]):
        label_dataset = open_dataset(write_dataset(tmp_path / "labels", labels))
        dataset = make_gpt2(prefix, 3, pack_impl="unpacked", label_dataset=label_dataset)
        assert set(dataset.doc_idx.tolist()) == {1 if labels[0][0] == -100 else 0}

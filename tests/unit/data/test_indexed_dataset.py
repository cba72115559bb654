"""Both file formats, byte for byte, and what happens to files that are cut short or of another kind."""

import os
import pickle
import struct

import numpy as np
import pytest

from megatron.common.errors import DataError
from megatron.data import indexed_dataset
from megatron.data.indexed_dataset import cached, mmap

DOCUMENTS = ([1, 2, 3], [4, 5], [6, 7, 8, 9])
MMAP_BIN = "010002000300040005000600070008000900"
MMAP_IDX = (
    "4d4d49444944580000 0100000000000000 08 0300000000000000 0400000000000000 03000000 02000000 04000000"
    "0000000000000000 0600000000000000 0a00000000000000"
    "0000000000000000 0100000000000000 0200000000000000 0300000000000000"
)
CACHED_BIN = "010000000200000003000000040000000500000006000000070000000800000009000000"
CACHED_HEADER = (
    "544e544944580000 0100000000000000 0400000000000000 0400000000000000 0300000000000000 0300000000000000"
    "0400000000000000"
)
CACHED_LONGS = [0, 1, 2, 3, 0, 3, 5, 9, 3, 2, 4, 0, 1, 2, 3]
CACHED_IDX = bytes.fromhex(CACHED_HEADER) + struct.pack(f"<{len(CACHED_LONGS)}q", *CACHED_LONGS)


def write(prefix, documents=DOCUMENTS, impl="mmap", vocab_size=100):
    builder = indexed_dataset.make_builder(f"{prefix}.bin", impl, vocab_size)
    for document in documents:
        builder.add_item(np.array(document, dtype=builder.dtype))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.fixture(params=["mmap", "cached", "lazy"])
def impl(request):
    return request.param


@pytest.fixture
def dataset(impl, tmp_path):
    return indexed_dataset.make_dataset(write(tmp_path / "data", impl=impl), impl)


def content(prefix, suffix):
    with open(prefix + suffix, "rb") as file:
        return file.read()


def test_mmap_files_equal_the_golden_bytes(tmp_path):
    prefix = write(tmp_path / "data")
    assert content(prefix, ".bin") == bytes.fromhex(MMAP_BIN)
    assert content(prefix, ".idx") == bytes.fromhex(MMAP_IDX)


def test_cached_files_equal_the_golden_bytes(tmp_path):
    prefix = write(tmp_path / "data", impl="cached")
    assert content(prefix, ".bin") == bytes.fromhex(CACHED_BIN)
    assert content(prefix, ".idx") == CACHED_IDX
    assert len(CACHED_IDX) == 176


@pytest.mark.parametrize(
    ("data", "index"), [(MMAP_BIN, bytes.fromhex(MMAP_IDX)), (CACHED_BIN, CACHED_IDX)], ids=["mmap", "cached"]
)
def test_golden_files_are_read_back(tmp_path, data, index):
    (tmp_path / "data.bin").write_bytes(bytes.fromhex(data))
    (tmp_path / "data.idx").write_bytes(index)
    dataset = indexed_dataset.make_dataset(str(tmp_path / "data"), "infer")
    assert [item.tolist() for item in dataset[:]] == [list(document) for document in DOCUMENTS]
    dataset.verify()


def test_items_sizes_and_documents(dataset):
    assert len(dataset) == 3
    assert [dataset[i].tolist() for i in range(3)] == [list(document) for document in DOCUMENTS]
    assert dataset.sizes.tolist() == [3, 2, 4]
    assert dataset.sizes.dtype == np.int32
    assert dataset.doc_idx.tolist() == dataset.get_doc_idx().tolist() == [0, 1, 2, 3]
    dataset.set_doc_idx(np.array([0, 3]))
    assert dataset.get_doc_idx().tolist() == [0, 3]
    dataset.verify()


def test_numpy_and_negative_integers_index(dataset):
    assert dataset[np.int64(1)].tolist() == dataset[np.uint16(1)].tolist() == [4, 5]
    assert dataset[-1].tolist() == dataset.get(-1).tolist() == [6, 7, 8, 9]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            dataset[outside]
    with pytest.raises(TypeError):
        dataset[1.0]


def test_slices(dataset):
    assert [item.tolist() for item in dataset[1:]] == [[4, 5], [6, 7, 8, 9]]
    assert [item.tolist() for item in dataset[-1:99]] == [[6, 7, 8, 9]]
    assert dataset[2:1] == []
    with pytest.raises(ValueError, match="step"):
        dataset[::2]


def test_partial_reads_stay_inside_the_item(dataset):
    assert dataset.get(2, offset=1).tolist() == [7, 8, 9]
    assert dataset.get(2, offset=1, length=2).tolist() == [7, 8]
    assert dataset.get(0, offset=3).tolist() == []
    for offset, length in ((0, 4), (4, None), (-1, 2), (2, -1)):
        with pytest.raises(IndexError):
            dataset.get(0, offset=offset, length=length)


def test_pickling_keeps_path_and_arguments(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    assert type(copy) is type(dataset) and copy.path == dataset.path
    assert copy[0].tolist() == [1, 2, 3]


def test_pickling_keeps_the_choice_not_to_warm_up(tmp_path, monkeypatch):
    prefix = write(tmp_path / "data")
    warmed = []
    monkeypatch.setattr(indexed_dataset.MMapIndexedDataset, "_warm_up", lambda self: warmed.append(self.path))
    pickle.loads(pickle.dumps(indexed_dataset.MMapIndexedDataset(prefix, skip_warmup=True)))
    assert warmed == []
    pickle.loads(pickle.dumps(indexed_dataset.MMapIndexedDataset(prefix)))
    assert warmed == [prefix, prefix]


@pytest.mark.parametrize("dtype", indexed_dataset.dtypes.values(), ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    ("builder", "reader"),
    [
        (indexed_dataset.MMapIndexedDatasetBuilder, indexed_dataset.MMapIndexedDataset),
        (indexed_dataset.IndexedDatasetBuilder, indexed_dataset.IndexedDataset),
    ],
)
def test_every_element_type_survives(tmp_path, builder, reader, dtype):
    values = [np.array([1, 2, 100], dtype=dtype), np.array([], dtype=dtype), np.array([3], dtype=dtype)]
    with builder(tmp_path / "data.bin", dtype=dtype) as writer:
        for value in values:
            writer.add_item(value)
        writer.end_document()
        writer.finalize(tmp_path / "data.idx")
    dataset = reader(tmp_path / "data")
    assert dataset.dtype == dtype
    assert [item.tolist() for item in dataset[:]] == [value.tolist() for value in values]
    assert dataset.doc_idx.tolist() == [0, 3]


def test_items_of_another_type_are_refused(tmp_path):
    builder = indexed_dataset.MMapIndexedDatasetBuilder(tmp_path / "data.bin", dtype=np.uint16)
    with pytest.raises(AssertionError):
        builder.add_item(np.array([1], dtype=np.int64))
    with pytest.raises(DataError, match="complex64"):
        indexed_dataset.code(np.complex64)


def test_an_empty_data_set_can_be_read(tmp_path, impl):
    dataset = indexed_dataset.make_dataset(write(tmp_path / "data", documents=(), impl=impl), impl)
    assert len(dataset) == 0 and dataset[:] == []
    dataset.verify()


def test_cached_items_keep_their_shape(tmp_path):
    table = np.arange(6, dtype=np.int32).reshape(2, 3)
    with indexed_dataset.IndexedDatasetBuilder(tmp_path / "data.bin") as builder:
        builder.add_item(table)
        builder.add_item(table[0])
        builder.finalize(tmp_path / "data.idx")
    dataset = indexed_dataset.IndexedDataset(tmp_path / "data")
    assert np.array_equal(dataset[0], table) and np.array_equal(dataset[1], table[0])
    assert dataset.get(0).shape == (6,)


def test_prefetched_items_are_read_from_memory(tmp_path):
    dataset = indexed_dataset.IndexedCachedDataset(write(tmp_path / "data", impl="cached"))
    dataset.prefetch([2, np.int64(0), 2])
    os.truncate(tmp_path / "data.bin", 0)
    assert dataset[2].tolist() == [6, 7, 8, 9]
    assert dataset.get(0, 1, 1).tolist() == [2]
    with pytest.raises(IndexError):
        dataset.get(0, 1, 3)


def test_element_type_follows_the_vocabulary(tmp_path):
    for vocab_size, dtype in ((65499, np.uint16), (65500, np.int32), (None, np.int32)):
        builder = indexed_dataset.make_builder(tmp_path / "data.bin", "mmap", vocab_size)
        assert builder.dtype == dtype
    assert indexed_dataset.make_builder(tmp_path / "data.bin", "cached", 100).dtype == np.int32


@pytest.mark.parametrize("kind", ["mmap", "cached"])
def test_merging_appends_items_and_documents(tmp_path, kind):
    first = write(tmp_path / "first", impl=kind)
    second = write(tmp_path / "second", documents=([10], [11, 12]), impl=kind)
    builder = indexed_dataset.make_builder(tmp_path / "both.bin", kind, 100)
    builder.merge_file_(first)
    builder.merge_file_(second)
    builder.finalize(tmp_path / "both.idx")
    write(tmp_path / "expected", documents=[*DOCUMENTS, [10], [11, 12]], impl=kind)
    for suffix in (".bin", ".idx"):
        assert content(str(tmp_path / "both"), suffix) == content(str(tmp_path / "expected"), suffix)


def test_merging_another_element_type_is_refused(tmp_path):
    builder = indexed_dataset.make_builder(tmp_path / "both.bin", "mmap", None)
    with pytest.raises(DataError, match="uint16"):
        builder.merge_file_(write(tmp_path / "first"))


def test_an_interrupted_builder_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        indexed_dataset.make_builder(tmp_path / "data.bin", "mmap") as builder,
    ):
        builder.add_item(np.array([1], dtype=np.int32))
        assert not (tmp_path / "data.bin").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_rebuilding_replaces_both_files(tmp_path):
    prefix = write(tmp_path / "data")
    write(tmp_path / "data", documents=([7],))
    assert indexed_dataset.make_dataset(prefix, "infer")[0].tolist() == [7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx"]


def test_a_builder_that_cannot_write_says_so(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        indexed_dataset.make_builder(tmp_path / "nowhere" / "data.bin", "mmap")


def test_infer_knows_both_formats(tmp_path, capsys):
    assert indexed_dataset.infer_dataset_impl(write(tmp_path / "a")) == "mmap"
    assert indexed_dataset.infer_dataset_impl(write(tmp_path / "b", impl="cached")) == "cached"
    assert indexed_dataset.infer_dataset_impl(tmp_path / "c") is None
    assert indexed_dataset.make_dataset(tmp_path / "c", "infer") is None
    assert str(tmp_path / "c") in capsys.readouterr().out


def one_line(error):
    return str(error.value).count("\n") == 0


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
@pytest.mark.parametrize("keep", [0, 5, 12, 33, 60, -1])
def test_truncated_files_are_named(impl, tmp_path, suffix, keep):
    prefix = write(tmp_path / "data", impl=impl)
    size = os.path.getsize(prefix + suffix)
    os.truncate(prefix + suffix, keep if 0 <= keep < size else size - 1)
    with pytest.raises(DataError) as error:
        indexed_dataset.make_dataset(prefix, impl)
    assert prefix + suffix in str(error.value) and one_line(error)


def test_a_longer_data_file_is_refused(impl, tmp_path):
    prefix = write(tmp_path / "data", impl=impl)
    with open(prefix + ".bin", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DataError, match="longer than its index says"):
        indexed_dataset.make_dataset(prefix, impl)


@pytest.mark.parametrize(
    "text", [b"", b"MMIDIDX", b"PK\x03\x04 something else entirely, and long enough for a header"]
)
def test_foreign_index_files_are_named(tmp_path, text):
    prefix = write(tmp_path / "data")
    with open(prefix + ".idx", "wb") as file:
        file.write(text)
    with pytest.raises(DataError) as error:
        indexed_dataset.make_dataset(prefix, "infer")
    assert prefix + ".idx" in str(error.value) and one_line(error)


@pytest.mark.parametrize(
    ("offset", "value", "reason"), [(9, 2, "version"), (17, 99, "element type"), (18, 2, "longer")]
)
def test_damaged_headers_are_named(tmp_path, offset, value, reason):
    prefix = write(tmp_path / "data")
    with open(prefix + ".idx", "r+b") as file:
        file.seek(offset)
        file.write(bytes([value]))
    with pytest.raises(DataError, match=reason):
        indexed_dataset.make_dataset(prefix, "mmap")


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (mmap.HEADER.size, 2, "disagree"),
        (mmap.HEADER.size + 3, 255, "negative size"),
        (mmap.HEADER.size + 44, 9, "ordered"),
    ],
)
def test_verify_finds_damage_inside_the_index(tmp_path, offset, value, reason):
    prefix = write(tmp_path / "data")
    with open(prefix + ".idx", "r+b") as file:
        file.seek(offset)
        file.write(bytes([value]))
    with pytest.raises(DataError, match=reason):
        indexed_dataset.make_dataset(prefix, "mmap").verify()


def test_missing_files_are_named(tmp_path):
    for suffix in (".bin", ".idx"):
        prefix = write(tmp_path / suffix[1:])
        os.remove(prefix + suffix)
        with pytest.raises(DataError, match=prefix + suffix):
            indexed_dataset.open_dataset(prefix)
    for reader in (indexed_dataset.MMapIndexedDataset, indexed_dataset.IndexedDataset):
        with pytest.raises(DataError, match="does not exist"):
            reader(tmp_path / "absent")


def test_fingerprint_follows_the_index_not_the_name(tmp_path, monkeypatch):
    same = [indexed_dataset.open_dataset(write(tmp_path / name)).fingerprint() for name in ("a", "b")]
    swapped = indexed_dataset.open_dataset(write(tmp_path / "c", documents=DOCUMENTS[::-1])).fingerprint()
    assert same[0] == same[1] != swapped
    monkeypatch.setattr("megatron.data.indexed_dataset.base.FINGERPRINT_BLOCK", 8)
    monkeypatch.setattr("megatron.data.indexed_dataset.base.FINGERPRINT_BLOCKS", 4)
    sampled = indexed_dataset.open_dataset(tmp_path / "a").fingerprint()
    assert sampled == indexed_dataset.open_dataset(tmp_path / "a").fingerprint() != same[0]


def test_a_merged_data_set_without_document_marks_is_readable(tmp_path):
    """GPT-NeoX's merge leaves the document index [0]; training uses items, so such files are fine."""
    (tmp_path / "data.bin").write_bytes(bytes.fromhex(MMAP_BIN))
    index = bytearray(bytes.fromhex(MMAP_IDX)[: -3 * 8])
    index[26] = 1
    (tmp_path / "data.idx").write_bytes(bytes(index))
    dataset = indexed_dataset.make_dataset(str(tmp_path / "data"), "mmap")
    assert dataset[2].tolist() == [6, 7, 8, 9]
    dataset.verify()


def test_helpers_of_the_format(tmp_path):
    assert indexed_dataset.create_doc_idx([3, 0, 2, 2, 0]) == [0, 2, 5]
    assert indexed_dataset.code(np.uint16) == 8 and indexed_dataset.dtypes[6] is np.float32
    with open(tmp_path / "longs", "w+b") as file:
        indexed_dataset.write_longs(file, [1, -2])
        file.seek(0)
        assert indexed_dataset.read_longs(file, 2).tolist() == [1, -2]
        with pytest.raises(DataError, match="truncated"):
            indexed_dataset.read_longs(file, 1)
    assert cached.MAGIC != mmap.MAGIC[:8]

"""Index maps: GPT-NeoX's order where it is right, and none of its defects."""

import numpy as np
import pytest

from megatron.common.errors import ConfigError, DataError
from megatron.data.packing import PackingRequest
from megatron.data.packing.packed import num_epochs
from megatron.registry import capabilities, lookup, names
from tests.unit.data.samples import SEED, make_gpt2, numbered, random_sizes, texts, write_dataset


def build(packing, sizes, seq_length, num_samples=None, documents=None, epochs=None, **options):
    sizes = np.array(sizes, dtype=np.int32)
    documents = range(len(sizes)) if documents is None else documents
    request = PackingRequest("test data", sizes, documents, seq_length, num_samples, epochs, SEED, **options)
    return lookup("packing", packing)(request)


def test_every_packing_is_registered():
    assert names("packing") == ["pack_until_overflow", "packed", "unpacked"]
    assert capabilities("packing", "packed").epochs and not capabilities("packing", "unpacked").epochs
    with pytest.raises(ConfigError, match="did you mean 'packed'"):
        lookup("packing", "pcked")


def test_packed_golden_vectors():
    maps = build("packed", [3, 2, 4, 5], 4, 5)
    assert maps.doc_idx.tolist() == [2, 1, 2, 0, 0, 1, 3, 3] and maps.doc_idx.dtype == np.int32
    assert maps.sample_idx.tolist() == [[0, 0], [1, 0], [2, 2], [3, 2], [5, 0], [6, 2], [7, 1]]
    assert maps.sample_idx.dtype == np.int32
    assert maps.shuffle_idx.tolist() == [0, 4, 3, 2, 5, 1] and maps.shuffle_idx.dtype == np.uint32
    assert maps.tokens_per_epoch == 14

    maps = build("packed", [7, 1, 6, 3, 9, 4], 5, 6, documents=[2, 3, 4])
    assert maps.doc_idx.tolist() == [4, 3, 4, 2, 3, 2]
    assert maps.sample_idx.tolist() == [[0, 0], [0, 5], [1, 1], [2, 3], [2, 8], [3, 4], [5, 0], [5, 5]]
    assert maps.shuffle_idx.tolist() == [5, 0, 3, 4, 2, 6, 1]


def test_packed_samples_golden_vector(tmp_path):
    dataset = make_gpt2(write_dataset(tmp_path / "data", numbered([3, 2, 4, 5])), 5, seq_length=4)
    assert texts(dataset) == [
        [20, 21, 22, 23, 10],
        [10, 11, 30, 31, 32],
        [2, 0, 1, 2, 10],
        [22, 23, 0, 1, 2],
        [32, 33, 34, 30, 31],
        [10, 11, 20, 21, 22],
    ]


def test_unpacked_golden_vector():
    maps = build("unpacked", [3, 2, 4], 8, 5)
    assert maps.shuffle_idx.tolist() == [4, 0, 1, 2, 3]
    assert maps.doc_idx.tolist() == [0, 1, 2, 0, 1, 2] and maps.doc_idx.dtype == np.int64
    assert maps.sample_idx.tolist() == [[i, 0] for i in range(6)]


def test_pack_until_overflow_golden_vector():
    maps = build("pack_until_overflow", [3, 2, 4, 5], 6, 4)
    assert maps.shuffle_idx.tolist() == [0, 1, 2, 3]
    assert maps.doc_idx.tolist() == [1, 2, 3, 0, 1, 3]
    assert maps.sample_idx.tolist() == [[0, 0], [2, 0], [3, 0], [5, 0], [6, 0]]


@pytest.mark.parametrize("samples", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("seq_length", [1, 3, 64])
def test_the_fewest_epochs_that_suffice_are_used(samples, seq_length):
    for tokens in (1, 2, 10, 1000):
        epochs = num_epochs(tokens, seq_length, samples)
        assert (epochs * tokens - 1) // seq_length >= samples
        assert epochs == 1 or ((epochs - 1) * tokens - 1) // seq_length < samples


@pytest.mark.parametrize("seed", range(5))
def test_packed_samples_cover_every_token_once_per_epoch(tmp_path, seed):
    sizes = random_sizes(50, seed)
    dataset = make_gpt2(
        write_dataset(tmp_path / "data", numbered(sizes, step=1000)), num_epochs=1, seq_length=7
    )
    seen = sorted(token for text in texts(dataset) for token in text[:-1])
    stored = sorted(token for document in numbered(sizes, step=1000) for token in document)
    assert len(set(seen)) == len(seen) and set(seen) <= set(stored)
    assert len(stored) - len(seen) <= 7


def test_consecutive_packed_samples_share_one_token(tmp_path):
    dataset = make_gpt2(write_dataset(tmp_path / "data", numbered(random_sizes(30))), 40, seq_length=7)
    by_row = {int(row): dataset[i]["text"] for i, row in enumerate(dataset.shuffle_idx)}
    assert all(by_row[row][-1] == by_row[row + 1][0] for row in range(len(by_row) - 1))


def test_empty_documents_are_passed_over():
    assert build("packed", [0, 3, 0, 4], 2, 2).tokens_per_epoch == 7
    for packing in ("unpacked", "pack_until_overflow"):
        assert set(build(packing, [0, 3, 0, 4], 6, 9).doc_idx.tolist()) == {1, 3}


@pytest.mark.parametrize("packing", ["packed", "unpacked", "pack_until_overflow"])
def test_only_documents_of_the_split_are_used(packing):
    maps = build(packing, random_sizes(100), 8, 300, documents=range(90, 97))
    assert set(maps.doc_idx.tolist()) == set(range(90, 97))
    assert set(build(packing, random_sizes(100), 8, 50, documents=np.array([5, 3])).doc_idx.tolist()) == {
        3,
        5,
    }


@pytest.mark.parametrize("packing", ["unpacked", "pack_until_overflow"])
def test_whole_documents_are_not_followed_by_the_next_one(tmp_path, packing):
    prefix = write_dataset(tmp_path / "data", numbered([3, 2, 4, 5], step=100))
    dataset = make_gpt2(prefix, 6, seq_length=6, pack_impl=packing)
    documents = [tuple(document) for document in numbered([3, 2, 4, 5], step=100)]
    for i in range(len(dataset)):
        text, label = dataset[i]["text"], dataset[i]["label"]
        tokens = text[label != -100].tolist()
        assert (text[label == -100] == 0).all() and (label[label != -100] == tokens).all()
        while tokens:
            document = next(document for document in documents if document[0] == tokens[0])
            assert tuple(tokens[: len(document)]) == document
            tokens = tokens[len(document) :]


@pytest.mark.parametrize("packing", ["unpacked", "pack_until_overflow"])
def test_long_documents_are_cut_or_left_out(tmp_path, packing):
    prefix = write_dataset(tmp_path / "data", numbered([20, 3, 6, 5], step=100))
    cut = make_gpt2(prefix, 8, seq_length=4, pack_impl=packing)
    assert [0, 1, 2, 3, 4] in texts(cut) and [200, 201, 202, 203, 204] in texts(cut)
    kept = make_gpt2(prefix, 8, seq_length=4, pack_impl=packing, allow_chopped=False)
    assert {text[0] for text in texts(kept)} == {100, 300}


def test_pack_until_overflow_fills_samples_without_exceeding_them():
    sizes = random_sizes(200, largest=30)
    maps = build("pack_until_overflow", sizes, 63, 80)
    ends = maps.sample_idx[:, 0].tolist()
    assert len(ends) == 81 and ends[-1] == len(maps.doc_idx)
    lengths = [sizes[document] for document in maps.doc_idx]
    for start, end in zip(ends, ends[1:], strict=False):
        assert 0 < sum(lengths[start:end]) <= 64
        if end < len(lengths):
            assert sum(lengths[start : end + 1]) > 64


def test_pack_until_overflow_reads_every_document_once_per_pass():
    maps = build("pack_until_overflow", random_sizes(20), 63, 40)
    for start in range(0, len(maps.doc_idx) - 20, 20):
        assert sorted(maps.doc_idx[start : start + 20].tolist()) == list(range(20))


@pytest.mark.parametrize("packing", ["unpacked", "pack_until_overflow"])
def test_a_split_without_usable_documents_is_an_error_not_a_hang(packing):
    with pytest.raises(DataError, match="none of its 2 documents"):
        build(packing, [9, 9], 4, 3, allow_chopped=False)
    with pytest.raises(DataError, match="none of its 2 documents"):
        build(packing, [0, 0], 4, 3)
    with pytest.raises(DataError, match="number of epochs"):
        build(packing, [3, 4], 4, epochs=1)


def test_packed_data_without_tokens_is_an_error_not_a_hang():
    with pytest.raises(DataError, match="no tokens"):
        build("packed", [0, 0], 4, 3)
    with pytest.raises(DataError, match="less than one sample"):
        build("packed", [2, 2], 4, epochs=1)

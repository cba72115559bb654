"""Samples of one data set."""

import pickle

import numpy as np
import pytest

from megatron.common.errors import DataError
from megatron.data.gpt2_dataset import (
    GPT2Dataset,
    _build_doc_idx,
    _build_sample_idx,
    _build_shuffle_idx,
    _num_epochs,
    _num_tokens,
)
from megatron.data.indexed_dataset import open_dataset
from tests.unit.data.samples import SEED, make_gpt2, numbered, random_sizes, texts, write_dataset


@pytest.fixture
def prefix(tmp_path):
    return write_dataset(tmp_path / "data", numbered(random_sizes(60), step=100))


def test_samples_have_one_token_more_than_the_sequence(prefix):
    dataset = make_gpt2(prefix, 50, seq_length=16)
    assert len(dataset) >= 50
    for i in range(len(dataset)):
        assert list(dataset[i]) == ["text"]
        assert dataset[i]["text"].shape == (17,) and dataset[i]["text"].dtype == np.int64


def test_every_sample_is_reachable_and_none_beyond(prefix):
    dataset = make_gpt2(prefix, 50)
    assert len(dataset) == len(dataset.sample_idx) - 1 == len(dataset.shuffle_idx)
    assert np.array_equal(dataset[-1]["text"], dataset[len(dataset) - 1]["text"])
    assert np.array_equal(dataset[np.int64(3)]["text"], dataset[3]["text"])
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_samples_are_a_function_of_the_seed_and_their_number(prefix):
    first = texts(make_gpt2(prefix, 50))
    assert texts(make_gpt2(prefix, 50)) == first
    other = GPT2Dataset("train", prefix, range(60), open_dataset(prefix), 50, None, 8, SEED + 1)
    assert texts(other) != first


def test_both_file_formats_give_the_same_samples(tmp_path):
    documents = numbered(random_sizes(60), step=100)
    found = [
        texts(make_gpt2(write_dataset(tmp_path / impl, documents, impl), 50)) for impl in ("mmap", "cached")
    ]
    assert found[0] == found[1]


def test_the_public_steps_build_the_same_map(prefix):
    dataset = make_gpt2(prefix, 200, seq_length=16)
    sizes, documents = dataset.indexed_dataset.sizes, np.arange(60, dtype=np.int32)
    tokens = _num_tokens(documents, sizes)
    epochs = _num_epochs(tokens, 16, 200)
    generator = np.random.RandomState(SEED)
    doc_idx = _build_doc_idx(documents, epochs, generator)
    sample_idx = _build_sample_idx(sizes, doc_idx, 16, epochs, tokens)
    shuffle_idx = _build_shuffle_idx(sample_idx.shape[0] - 1, generator)
    for name, array in (("doc_idx", doc_idx), ("sample_idx", sample_idx), ("shuffle_idx", shuffle_idx)):
        assert np.array_equal(getattr(dataset, name), array)


def test_a_pickled_data_set_reads_the_same_without_carrying_its_data(prefix):
    dataset = make_gpt2(prefix, 5000)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    assert texts(pickle.loads(pickled))[:20] == texts(dataset)[:20]


def test_without_maps_only_the_data_is_opened(prefix, tmp_path):
    dataset = make_gpt2(prefix, 5, build_index_mappings=False)
    assert len(dataset.documents) == 60
    assert not (tmp_path / "data_index_maps").exists()
    assert len(pickle.loads(pickle.dumps(dataset)).documents) == 60


def test_labels_follow_the_text(tmp_path):
    documents = numbered(random_sizes(30), step=100)
    prefix = write_dataset(tmp_path / "data", documents)
    labels = [[-100 if k % 3 else token for k, token in enumerate(document)] for document in documents]
    label_dataset = open_dataset(write_dataset(tmp_path / "labels", labels))
    for packing in ("packed", "unpacked", "pack_until_overflow"):
        dataset = make_gpt2(prefix, 20, label_dataset=label_dataset, pack_impl=packing)
        for i in range(len(dataset)):
            text, label = dataset[i]["text"], dataset[i]["label"]
            kept = label != -100
            assert label.dtype == np.int64 and (label[kept] == text[kept]).all()
            assert (text[kept] % 100 % 3 == 0).all()
            assert 0 < kept.sum() < len(text)


def test_labels_of_another_data_set_are_refused(prefix, tmp_path):
    labels = open_dataset(write_dataset(tmp_path / "labels", numbered([1, 2, 3])))
    with pytest.raises(DataError, match="labels .*labels do not belong to"):
        make_gpt2(prefix, 5, label_dataset=labels)


@pytest.mark.parametrize("packing", ["unpacked", "pack_until_overflow"])
def test_documents_whose_labels_are_all_ignored_are_left_out(tmp_path, packing):
    documents = numbered([4, 4, 12], step=100)
    prefix = write_dataset(tmp_path / "data", documents)
    # The third document has a label, but only beyond the sample's end.
    labels = open_dataset(write_dataset(tmp_path / "labels", [[-100] * 4, [1] * 4, [-100] * 11 + [1]]))
    dataset = make_gpt2(prefix, 6, pack_impl=packing, label_dataset=labels)
    assert set(dataset.doc_idx.tolist()) == {1}


def test_rewards_and_reference_values_belong_to_whole_documents(tmp_path):
    prefix = write_dataset(tmp_path / "data", numbered([3, 4]))
    rewards = open_dataset(write_dataset(tmp_path / "rewards", [[0.5], [-1.5]], dtype=np.float32))
    reference = open_dataset(write_dataset(tmp_path / "ref", [[0.1] * 8, [0.2] * 8], dtype=np.float32))
    dataset = make_gpt2(prefix, 4, pack_impl="unpacked", reward_dataset=rewards, ref_dataset=reference)
    for i in range(4):
        sample = dataset[i]
        length, reward, value = (3, 0.5, 0.1) if sample["text"][0] == 0 else (4, -1.5, 0.2)
        assert sample["reward"].dtype == sample["ref"].dtype == np.float32
        assert sample["reward"].tolist() == [reward] * length + [0.0] * (9 - length)
        assert sample["ref"].tolist() == pytest.approx([value] * 8 + [0.0])
    with pytest.raises(DataError, match="rewards .* need pack_impl unpacked"):
        make_gpt2(prefix, 4, reward_dataset=rewards)
    short = open_dataset(write_dataset(tmp_path / "short", [[0.5]], dtype=np.float32))
    with pytest.raises(DataError, match="have 1 documents"):
        make_gpt2(prefix, 4, pack_impl="unpacked", reward_dataset=short)


def test_a_split_without_documents_is_named(prefix):
    with pytest.raises(DataError, match="train split of .*data: it has no documents"):
        make_gpt2(prefix, 5, documents=range(3, 3))


def test_passes_over_the_data_are_counted(prefix):
    dataset = make_gpt2(prefix, 500)
    assert dataset.tokens_per_epoch == dataset.indexed_dataset.sizes.sum()
    assert dataset.epochs_of(500) == pytest.approx(500 * 8 / dataset.tokens_per_epoch)
    whole = make_gpt2(prefix, 90, pack_impl="unpacked")
    assert whole.epochs_of(90) == pytest.approx(1.5)
    assert whole.tokens_per_epoch == np.minimum(whole.indexed_dataset.sizes, 9).sum()

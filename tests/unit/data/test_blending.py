"""Several data sets read as one."""

import pickle

import numpy as np
import pytest

from megatron.common.errors import DataError
from megatron.data.blendable_dataset import BlendableDataset, member_type
from tests.unit.data.samples import make_gpt2, numbered, random_sizes, write_dataset


class Numbers:
    """A data set whose samples say where they come from."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.name, index


def blend(sizes, weights, **options):
    return BlendableDataset([Numbers(i, size) for i, size in enumerate(sizes)], weights, **options)


def test_golden_vector():
    dataset = blend([14, 4, 2], [0.7, 0.2, 0.1])
    assert len(dataset) == 20
    assert dataset.dataset_index.tolist() == [0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 0, 0]
    assert dataset.dataset_sample_index.tolist() == [
        0,
        0,
        1,
        0,
        2,
        3,
        4,
        1,
        5,
        6,
        7,
        2,
        8,
        1,
        9,
        10,
        11,
        3,
        12,
        13,
    ]
    assert dataset.dataset_index.dtype == np.uint8 and dataset.dataset_sample_index.dtype == np.int64
    assert [dataset[i] for i in (0, 1, 2)] == [(0, 0), (1, 0), (0, 1)]


def test_weights_need_not_sum_to_one():
    found = [
        blend([20, 20, 20], weights).dataset_index.tolist() for weights in ([2, 1, 1], [0.5, 0.25, 0.25])
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(10))
def test_shares_stay_within_one_sample_of_the_weights(seed):
    generator = np.random.RandomState(seed)
    weights = generator.rand(generator.randint(2, 12)) + 0.01
    dataset = blend([5000] * len(weights), weights, num_samples=2000)
    for size in (1, 10, 777, 2000):
        assert np.all(np.array(dataset.counts(size)) <= weights / weights.sum() * size + 1)
        assert sum(dataset.counts(size)) == size


def test_a_blend_ends_before_a_member_is_asked_for_more_than_it_has():
    dataset = blend([10, 1000], [0.5, 0.5])
    assert 20 <= len(dataset) <= 21
    assert len({dataset[i] for i in range(len(dataset))}) == len(dataset)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("seed", range(10))
def test_weights_proportional_to_the_sizes_read_everything_exactly_once(seed):
    sizes = np.random.RandomState(seed).randint(1, 300, 5).tolist()
    dataset = blend(sizes, [float(size) for size in sizes])
    assert sorted(dataset[i] for i in range(len(dataset))) == [
        (d, i) for d, size in enumerate(sizes) for i in range(size)
    ]


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.int16), (40_000, np.int32)])
def test_the_number_of_members_is_not_limited(count, dtype):
    assert member_type(count) == dtype


def test_three_hundred_members():
    dataset = blend([3] * 300, [1.0] * 300)
    assert sorted(dataset[i] for i in range(900)) == [(d, i) for d in range(300) for i in range(3)]
    assert dataset.dataset_index.dtype == np.int16


@pytest.mark.parametrize("weights", [[], [0.5], [1, 0], [1, -1], [float("nan"), 1]])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(DataError, match="weights"):
        blend([3, 3], weights)


def test_a_member_without_samples_is_refused():
    with pytest.raises(DataError, match="data set 1 of a blend has no samples"):
        blend([3, 0], [1, 1])


def test_the_map_is_kept_and_keyed_by_weights_lengths_and_size(tmp_path):
    for options in ({}, {}, {"num_samples": 9}):
        blend([14, 4, 2], [7, 2, 1], cache=tmp_path / "maps", **options)
    blend([14, 4, 3], [7, 2, 1], cache=tmp_path / "maps")
    blend([14, 4, 2], [7, 2, 1.5], cache=tmp_path / "maps")
    assert len([path for path in (tmp_path / "maps").iterdir() if path.name != ".lock"]) == 4


@pytest.mark.parametrize("kept", [True, False])
def test_a_pickled_blend_reads_the_same(tmp_path, kept):
    members = [
        make_gpt2(write_dataset(tmp_path / name, numbered(random_sizes(20, seed=i))), 30)
        for i, name in enumerate("ab")
    ]
    dataset = BlendableDataset(members, [1, 2], cache=tmp_path / "maps" if kept else None)
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(np.array_equal(copy[i]["text"], dataset[i]["text"]) for i in range(len(dataset)))

"""Order, position and division of samples."""

import itertools

import numpy as np
import pytest

from megatron.data.samplers import DistributedBatchSampler, EpochSampler, RandomSampler


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def test_the_first_pass_keeps_the_order_and_later_ones_do_not():
    orders = take(iter(EpochSampler(100, 7, endless=True)), 300)
    assert orders[:100] == list(range(100))
    assert sorted(orders[100:200]) == sorted(orders[200:]) == list(range(100))
    assert orders[100:200] != orders[:100] and orders[100:200] != orders[200:]


def test_a_position_always_holds_the_same_sample():
    whole = take(iter(EpochSampler(37, 7, endless=True)), 200)
    for position in (0, 1, 36, 37, 38, 74, 150):
        assert (
            take(EpochSampler(37, 7, endless=True).iterate_from(position), 20)
            == whole[position : position + 20]
        )
    assert take(iter(EpochSampler(37, 8, endless=True)), 200) != whole


def test_a_sampler_that_is_not_endless_ends_with_the_pass():
    assert list(EpochSampler(5, 7)) == [0, 1, 2, 3, 4]
    assert list(EpochSampler(5, 7).iterate_from(3)) == [3, 4]
    assert len(list(EpochSampler(5, 7).iterate_from(7))) == 3
    assert len(EpochSampler(5, 7, endless=True)) == 5


def batches(world_size, rank, batch_size=6, size=20, start=0, **options):
    sampler = DistributedBatchSampler(
        EpochSampler(size, 7), batch_size, rank=rank, world_size=world_size, **{"drop_last": True, **options}
    )
    sampler.start_iter = start
    return list(sampler)


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_each_global_batch(world_size, interleave):
    parts = [batches(world_size, rank, interleave=interleave) for rank in range(world_size)]
    for i in range(3):
        together = [sample for part in parts for sample in part[i]]
        assert sorted(together) == list(range(6 * i, 6 * i + 6))
        assert {len(part[i]) for part in parts} == {6 // world_size}


def test_contiguous_and_interleaved_parts():
    assert batches(2, 1)[0] == [3, 4, 5]
    assert batches(2, 1, interleave=True)[0] == [1, 3, 5]


def test_an_incomplete_last_batch_is_dropped_kept_or_filled():
    assert batches(1, 0)[-1] == [12, 13, 14, 15, 16, 17]
    assert batches(1, 0, drop_last=False)[-1] == [18, 19]
    assert batches(2, 1, drop_last=False)[-1] == [19]
    assert batches(1, 0, drop_last=False, wrap_last=True)[-1] == [18, 19, 0, 1, 2, 3]
    assert batches(1, 0, drop_last=False, wrap_last=True, size=2) == [[0, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(("drop_last", "length"), [(True, 3), (False, 4)])
def test_the_length_is_the_number_of_batches(drop_last, length):
    sampler = DistributedBatchSampler(range(20), 6, drop_last, rank=0, world_size=1)
    assert len(sampler) == len(list(sampler)) == length


def test_skipped_batches_are_skipped_once():
    for order in (EpochSampler(20, 7), range(20)):
        sampler = DistributedBatchSampler(order, 6, True, rank=0, world_size=1)
        sampler.start_iter = 2
        assert list(sampler) == [[12, 13, 14, 15, 16, 17]]
        assert len(list(sampler)) == 3


def test_another_number_of_ranks_sees_exactly_the_remaining_samples():
    """12 samples read by 2 ranks in batches of 4, then the job goes on with 3 ranks in batches of 6."""

    def read(world_size, batch_size, start, count):
        parts = []
        for rank in range(world_size):
            sampler = DistributedBatchSampler(EpochSampler(20, 7, True), batch_size, True, rank, world_size)
            sampler.start_iter = start
            parts.append(take(iter(sampler), count))
        return [sample for batch in zip(*parts, strict=True) for part in batch for sample in part]

    assert read(2, 4, 0, 3) + read(3, 6, 2, 8) == take(iter(EpochSampler(20, 7, True)), 60)


def test_random_samples():
    source = list(range(50))
    sampler = RandomSampler(source)
    first = list(sampler)
    assert sorted(first) == source and len(sampler) == 50 and list(sampler) == first
    sampler.set_epoch(1)
    assert sorted(sampler) == source and list(sampler) != first
    drawn = RandomSampler(source, replacement=True, num_samples=200)
    assert len(list(drawn)) == len(drawn) == 200 and set(drawn) <= set(source)


@pytest.mark.parametrize(("replacement", "num_samples"), [(False, 5), (True, 0)])
def test_contradicting_arguments_are_refused(replacement, num_samples):
    with pytest.raises(ValueError, match="num_samples"):
        RandomSampler([1, 2], replacement, num_samples)


def test_large_data_sets_are_ordered_with_64_bits():
    assert EpochSampler(10, 7).order_of(1).dtype == np.int32
    assert EpochSampler(2**40, 7).order_of(0)[2**39 : 2**39 + 2].tolist() == [2**39, 2**39 + 1]

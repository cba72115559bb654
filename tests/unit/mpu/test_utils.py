import pytest
import torch

from megatron import mpu
from megatron.mpu.utils import VocabUtility, ensure_divisibility, split_tensor_along_any_dim


def test_divide_is_exact():
    assert mpu.divide(12, 4) == 3
    ensure_divisibility(12, 4)
    with pytest.raises(AssertionError, match="13 is not divisible by 4"):
        mpu.divide(13, 4)


def test_split_gives_views_or_contiguous_copies():
    tensor = torch.arange(24).view(2, 3, 4)
    views = mpu.split_tensor_along_last_dim(tensor, 2)
    copies = mpu.split_tensor_along_last_dim(tensor, 2, contiguous_split_chunks=True)
    assert [part.is_contiguous() for part in views] == [False, False]
    assert all(part.is_contiguous() for part in copies)
    assert torch.equal(torch.cat(views, -1), tensor) and torch.equal(torch.cat(copies, -1), tensor)
    assert [part.shape for part in split_tensor_along_any_dim(tensor, 3, 1)] == [(2, 1, 4)] * 3


def test_vocabulary_ranges():
    assert VocabUtility.vocab_range_from_global_vocab_size(12, 1, 3) == (4, 8)
    assert VocabUtility.vocab_range_from_per_partition_vocab_size(5, 2, 3) == (10, 15)

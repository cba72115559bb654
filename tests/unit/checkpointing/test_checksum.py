"""Sums of parts, joined, are the sum of the whole."""

import random
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron.checkpointing import checksum


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (5, 0), (1, 1), (1000, 77), (3, 100_003)])
def test_the_sum_of_two_pieces_follows_from_their_sums(first, second):
    choice = random.Random(first + second)
    one, other = choice.randbytes(first), choice.randbytes(second)
    assert checksum.joined(zlib.crc32(one), zlib.crc32(other), second) == zlib.crc32(one + other)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 4096])
def test_a_file_is_summed_up_in_parts(tmp_path, size, monkeypatch):
    monkeypatch.setattr(checksum, "_PART", 1000)
    content = random.Random(size).randbytes(size)
    (tmp_path / "x").write_bytes(content)
    with ThreadPoolExecutor(3) as readers:
        assert checksum.of_file(tmp_path / "x", size, readers)() == zlib.crc32(content)

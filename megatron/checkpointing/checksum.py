"""CRC-32 of large files, parts of which are read by several threads."""

import zlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

from megatron.common import activity

_POLYNOMIAL = 0xEDB88320  # of zlib's CRC-32, the highest power in the lowest bit
_ONE, _X8 = 1 << 31, 1 << 23  # the polynomials 1 and x^8
_PART = 1 << 26  # bytes
_BLOCK = 1 << 22


def of_file(path: Path, size: int, readers: Executor) -> Callable[[], int]:
    """Begin to sum up a file of a known size. Returns: what waits for the sum."""
    parts = [(start, min(_PART, size - start)) for start in range(0, size, _PART)]
    sums: list[Future[int]] = [readers.submit(_of_part, path, start, length) for start, length in parts]

    def total() -> int:
        checksum = 0
        for (_, length), part in zip(parts, sums, strict=True):
            checksum = joined(checksum, part.result(), length)
        return checksum

    return total


def _of_part(path: Path, start: int, length: int) -> int:
    checksum = 0
    with open(path, "rb") as file:
        file.seek(start)
        while length > 0 and (block := file.read(min(_BLOCK, length))):
            checksum = zlib.crc32(block, checksum)
            length -= len(block)
            activity.pulse()
    return checksum


def joined(first: int, second: int, length: int) -> int:
    """The sum of two pieces in a row from the sums of both; `length`: bytes of the second."""
    # The bytes that follow multiply what the first has left by x^8 each.
    factor, power = _ONE, _X8
    while length:
        if length & 1:
            factor = _product(factor, power)
        power = _product(power, power)
        length >>= 1
    return _product(factor, first) ^ second


def _product(first: int, second: int) -> int:
    """Of two polynomials over the field of two elements, modulo the CRC's."""
    product = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            product ^= second
        second = (second >> 1) ^ (_POLYNOMIAL if second & 1 else 0)
    return product

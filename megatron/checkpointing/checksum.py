"""CRC-32 of large files, parts of which are read by several threads."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # a machine that it is not built for: the same sums at a fraction of the speed
    from zlib import crc32

__all__ = ["crc32", "joined", "of_file"]

from megatron.common import activity

_POLYNOMIAL = 0xEDB88320  # of zlib's CRC-32, the highest power in the lowest bit
_ONE, _X8 = 1 << 31, 1 << 23  # the polynomials 1 and x^8
_PART = 1 << 25  # bytes
_BLOCK = 1 << 18  # stays in the cache of a core


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
    checksum, room = 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while length > 0 and (count := file.readinto(room[: min(_BLOCK, length)])):
            checksum = crc32(room[:count], checksum)
            length -= count
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

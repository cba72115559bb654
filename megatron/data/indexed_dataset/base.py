"""What the file formats of indexed data sets share: element types, paths, the reading interface.

Legend: an item is one stored sequence (in text data: one document); N items, D entries of the document index.
"""

import hashlib
import operator
import os

import numpy as np

from megatron.common.errors import DataError

# The element type codes of both formats.
dtypes = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float32,
    7: np.float64,
    8: np.uint16,
}
_CODES = {np.dtype(dtype): number for number, dtype in dtypes.items()}
FINGERPRINT_BLOCK, FINGERPRINT_BLOCKS = 1 << 20, 64
CHECK_ITEMS = 1 << 20


def code(dtype) -> int:
    """The format's number of an element type.

    Raises: DataError for a type the formats do not have.
    """
    number = _CODES.get(np.dtype(dtype))
    if number is None:
        raise DataError(
            f"indexed data sets cannot hold {np.dtype(dtype)}: use one of {', '.join(map(str, _CODES))}"
        )
    return number


def index_file_path(prefix_path) -> str:
    """`<prefix>.idx`"""
    return f"{prefix_path}.idx"


def data_file_path(prefix_path) -> str:
    """`<prefix>.bin`"""
    return f"{prefix_path}.bin"


def files_exist(path) -> bool:
    """Whether `<path>.idx` and `<path>.bin` are there."""
    return os.path.exists(index_file_path(path)) and os.path.exists(data_file_path(path))


def create_doc_idx(sizes) -> list[int]:
    """Document index of items of which the empty ones end documents: 0, then the item count after each of those."""
    return [0, *(i + 1 for i, size in enumerate(sizes) if size == 0)]


def read_longs(f, n: int) -> np.ndarray:
    """Read n int64 from a binary file. Raises: DataError where the file ends early."""
    values = np.fromfile(f, dtype="<i8", count=n) if n > 0 else np.empty(0, dtype="<i8")
    if len(values) != max(n, 0):
        raise DataError(f"{getattr(f, 'name', 'file')} ends early: it is truncated")
    return values


def write_longs(f, a) -> None:
    """Write a sequence as int64 to a binary file."""
    f.write(np.ascontiguousarray(a, dtype="<i8").tobytes())


def file_size(path: str) -> int:
    """Bytes of a file. Raises: DataError naming the file if it cannot be read."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: give the prefix of a data set, its path without .bin or .idx"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_header(path: str, magic: bytes, length: int, kind: str) -> bytes:
    """The first `length` bytes of an .idx file, whose magic number must be `magic`, as in data sets of this kind."""
    file_size(path)
    try:
        with open(path, "rb") as file:
            header = file.read(length)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not header.startswith(magic):
        raise DataError(
            f"{path} is not the index of a data set of kind {kind}: set data_impl to infer, or correct it"
        )
    if len(header) < length:
        raise DataError(
            f"{path} is truncated: {len(header)} bytes, its header alone has {length}; make the data set again"
        )
    return header


def require_file_size(path: str, expected: int, meaning: str) -> None:
    """Raises: DataError that says whether the file is cut short or of another data set."""
    found = file_size(path)
    if found != expected:
        reason = "truncated" if found < expected else "longer than its index says"
        raise DataError(
            f"{path} is {reason}: {found} bytes instead of {expected} ({meaning}); make the data set again"
        )


class IndexedDatasetReader:
    """The reading interface of all formats.

    Subclasses set `path` (prefix), `dtype`, `sizes` (int32 [N], elements per item), `doc_idx` (int64 [D]) and define
    `get`. Opening checks headers and file sizes; `verify` checks everything. Pickles as its constructor's arguments.
    """

    path: str
    dtype: np.dtype
    sizes: np.ndarray
    supports_prefetch = False

    def get(self, idx: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Elements [offset, offset + length) of an item, to its end without a length.

        Raises: IndexError for an item, offset or length outside the data.
        """
        raise NotImplementedError

    def join(self, items: list[int], start: int, end: int) -> np.ndarray:
        """int64: elements from `start` of the first item on, over whole items, to `end`, inclusive, of the last one."""
        if len(items) == 1:
            return self.get(items[0], start, end - start + 1).astype(np.int64)
        pieces = [
            self.get(items[0], start),
            *(self.get(item) for item in items[1:-1]),
            self.get(items[-1], 0, end + 1),
        ]
        return np.concatenate(pieces).astype(np.int64)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, idx):
        """One item, or for a slice with step 1 the list of its items (ValueError for another step)."""
        if isinstance(idx, slice):
            start, stop, step = idx.indices(len(self))
            if step != 1:
                raise ValueError("slices of an indexed data set must have step 1")
            return [self.get(i) for i in range(start, stop)]
        return self.get(self._item_number(idx))

    def _item_number(self, idx) -> int:
        number = operator.index(idx)
        count = len(self.sizes)
        if not -count <= number < count:
            raise IndexError(f"item {number} of {count} in {self.path}")
        return number + count if number < 0 else number

    @property
    def doc_idx(self) -> np.ndarray:
        """int64 [D]: item counts at which documents start; a final entry closes the last document."""
        return self._doc_idx

    def get_doc_idx(self) -> np.ndarray:
        """The document index."""
        return self._doc_idx

    def set_doc_idx(self, doc_idx) -> None:
        """Replace the document index of this reader (not of the file)."""
        self._doc_idx = doc_idx

    def verify(self) -> None:
        """Check everything that opening did not: reads the whole index once, in constant memory.

        Raises: DataError for negative sizes, item positions that do not follow from the sizes, or a document index that
        is not ordered or names items that do not exist.
        """
        position = 0
        for start in range(0, len(self), CHECK_ITEMS):
            sizes = np.asarray(self.sizes[start : start + CHECK_ITEMS], dtype=np.int64)
            if (sizes < 0).any():
                item = start + int(np.argmin(sizes))
                raise DataError(f"{index_file_path(self.path)} is damaged: item {item} has a negative size")
            ends = position + np.cumsum(sizes)
            found = self._element_offsets(start, start + len(sizes))
            if not np.array_equal(found, ends - sizes):
                raise DataError(f"{index_file_path(self.path)} is damaged: item positions and sizes disagree")
            position = int(ends[-1])
        documents = np.asarray(self._doc_idx)
        ordered = len(documents) == 0 or (documents[0] == 0 and (np.diff(documents) >= 0).all())
        if not ordered or (len(documents) and documents[-1] > len(self)):
            raise DataError(f"{index_file_path(self.path)} is damaged: its document index is not ordered")

    def _element_offsets(self, start: int, stop: int) -> np.ndarray:
        """Where items [start, stop) begin in the .bin file, in elements."""
        raise NotImplementedError

    def fingerprint(self, values: bool = False) -> str:
        """Changes whenever the document lengths may have: a digest of the index and of the sizes of both files.

        Args: values: cover what the .bin file holds, too.
        """
        index, data = index_file_path(self.path), data_file_path(self.path)
        digest = hashlib.sha256(f"{file_size(index)} {file_size(data)}".encode())
        for path in (index, data) if values else (index,):
            _digest_content(digest, path)
        return digest.hexdigest()[:32]


def _digest_content(digest, path: str) -> None:
    """Of a file above 64 MiB evenly spread blocks, and its time of modification, stand for the whole."""
    status = os.stat(path)
    stride: float = FINGERPRINT_BLOCK
    if status.st_size > FINGERPRINT_BLOCK * FINGERPRINT_BLOCKS:
        digest.update(str(status.st_mtime_ns).encode())
        stride = (status.st_size - FINGERPRINT_BLOCK) / (FINGERPRINT_BLOCKS - 1)
    with open(path, "rb") as file:
        for block in range(FINGERPRINT_BLOCKS):
            file.seek(int(block * stride))
            digest.update(file.read(FINGERPRINT_BLOCK))

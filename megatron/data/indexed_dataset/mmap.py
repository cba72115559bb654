"""The "mmap" format: a binary header, then sizes, positions and document index, all of them read in place.

.idx, little-endian: magic (9 bytes), uint64 version 1, uint8 element type, uint64 N, uint64 D, int32[N] sizes in
elements, int64[N] positions in bytes, int64[D] document index. .bin: the items, nothing between them.
"""

import struct
from typing import BinaryIO

import numpy as np

from megatron.common.errors import DataError
from megatron.data.indexed_dataset.base import (
    IndexedDatasetReader,
    data_file_path,
    dtypes,
    file_size,
    files_exist,
    index_file_path,
    read_header,
    require_file_size,
)
from megatron.data.indexed_dataset.writing import IndexedDatasetWriter

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
WARMUP_BYTES = 1 << 24
# Below this an index is read into memory: a blend of very many data sets must not run out of file descriptors.
MAP_ABOVE_BYTES = 1 << 20
LARGEST_ITEM = 2**31 - 1


class MMapIndexedDataset(IndexedDatasetReader):
    """Reads the mmap format. Items are read-only views of the file, not copies.

    Args: path: prefix; skip_warmup: False reads the .bin file once, so that it is in the page cache.
    Raises: DataError naming the file and the reason if a file is missing, truncated or foreign.
    """

    def __init__(self, path, skip_warmup: bool = False):
        self.path = str(path)
        self._skip_warmup = skip_warmup
        count, documents = self._read_header()
        index = index_file_path(self.path)
        positions_at = HEADER.size + 4 * count
        documents_at = positions_at + 8 * count
        raw = _contents(index)
        self.sizes = raw[HEADER.size : positions_at].view("<i4")
        self._positions = raw[positions_at:documents_at].view("<i8")
        self._doc_idx = raw[documents_at:].view("<i8")
        item_bytes = self.dtype.itemsize
        total = int(self._positions[-1]) + int(self.sizes[-1]) * item_bytes if count else 0
        require_file_size(data_file_path(self.path), total, f"the end of the last item in {index}")
        if not skip_warmup:
            self._warm_up()
        data = np.memmap(data_file_path(self.path), dtype=self.dtype, mode="r") if total else []
        self._elements = np.asarray(data, dtype=self.dtype)
        self._shift = item_bytes.bit_length() - 1

    def _read_header(self) -> tuple[int, int]:
        path = index_file_path(self.path)
        _, version, dtype_code, count, documents = HEADER.unpack(
            read_header(path, MAGIC, HEADER.size, "mmap")
        )
        if version != VERSION:
            raise DataError(f"{path} has version {version} of its format; only version {VERSION} can be read")
        if dtype_code not in dtypes:
            raise DataError(f"{path} is damaged: unknown element type {dtype_code}")
        self.dtype = np.dtype(dtypes[dtype_code]).newbyteorder("<")
        require_file_size(
            path, HEADER.size + 12 * count + 8 * documents, f"{count} items, {documents} document marks"
        )
        return count, documents

    def _warm_up(self) -> None:
        with open(data_file_path(self.path), "rb", buffering=0) as file:
            while file.read(WARMUP_BYTES):
                pass

    def __reduce__(self):
        return type(self), (self.path, self._skip_warmup)

    def get(self, idx: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Elements [offset, offset + length) of item idx; to its end without a length. A view, read-only.

        Raises: IndexError for an item, offset or length outside the data.
        """
        if idx < 0:
            idx = self._item_number(idx)
        size = self.sizes.item(idx)
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise IndexError(f"elements [{offset}, {end}) of item {idx} in {self.path}, which has {size}")
        start = self._positions.item(idx) >> self._shift
        return self._elements[start + offset : start + end]

    def join(self, items: list[int], start: int, end: int) -> np.ndarray:
        """int64: elements from `start` of the first item on, over whole items, to `end`, inclusive, of the last one.

        Every sample comes through here, so it avoids calls: measured against raw slices (tools/benchmarks).
        """
        elements, position_of, shift = self._elements, self._positions.item, self._shift
        at = position_of(items[0]) >> shift
        if len(items) == 1:
            return elements[at + start : at + end + 1].astype(np.int64)
        size_of = self.sizes.item
        pieces = [elements[at + start : at + size_of(items[0])]]
        for item in items[1:-1]:
            at = position_of(item) >> shift
            pieces.append(elements[at : at + size_of(item)])
        at = position_of(items[-1]) >> shift
        pieces.append(elements[at : at + end + 1])
        # Joining in the stored type and converting once is faster than converting every piece.
        return np.concatenate(pieces).astype(np.int64)

    def _element_offsets(self, start: int, stop: int) -> np.ndarray:
        return self._positions[start:stop] // self.dtype.itemsize

    @staticmethod
    def exists(path) -> bool:
        """Whether both files are there."""
        return files_exist(path)


def _contents(path: str) -> np.ndarray:
    size = file_size(path)
    if size < MAP_ABOVE_BYTES:
        return np.fromfile(path, dtype=np.uint8)
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))


class MMapIndexedDatasetBuilder(IndexedDatasetWriter):
    """Writes the mmap format in constant memory.

    Args: out_file: path of the .bin file; dtype: element type, which every item must have.
    """

    def __init__(self, out_file, dtype=np.int64):
        super().__init__(out_file, dtype)
        self._sizes = self._spool("<i4")
        self._doc_idx = self._spool("<i8")
        self._doc_idx.append(0)

    def add_item(self, np_array) -> None:
        """Append one item."""
        array = self._as_item(np_array)
        if array.size > LARGEST_ITEM:
            raise DataError(
                f"{self.path}: a document of {array.size} tokens is too long, the limit is {LARGEST_ITEM}"
            )
        self._write(array.tobytes())
        self._sizes.append(array.size)

    def end_document(self) -> None:
        """The items added since the last call form one document."""
        self._doc_idx.append(len(self._sizes))

    def merge_file_(self, another_file) -> None:
        """Append a data set of this format, items and documents.

        Raises: DataError if it cannot be read or has another element type.
        """
        other = MMapIndexedDataset(another_file, skip_warmup=True)
        before = len(self._sizes)
        self._append_data(other)
        self._sizes.extend(other.sizes)
        self._doc_idx.extend(other.doc_idx[1:] + before)

    def finalize(self, index_file) -> None:
        """Write the index and put both files in place."""
        self._put_in_place(index_file, self._write_index)

    def _write_index(self, file: BinaryIO) -> None:
        file.write(HEADER.pack(MAGIC, VERSION, self.dtype_code, len(self._sizes), len(self._doc_idx)))
        for sizes in self._sizes.chunks():
            file.write(sizes.tobytes())
        position = 0
        for sizes in self._sizes.chunks():
            ends = position + np.cumsum(sizes, dtype=np.int64)
            file.write(((ends - sizes) * self.dtype.itemsize).astype("<i8").tobytes())
            position = int(ends[-1])
        for marks in self._doc_idx.chunks():
            file.write(marks.tobytes())

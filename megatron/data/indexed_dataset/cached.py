"""The "cached" format, also read lazily: int64 arrays of dimensions and positions before raw items.

.idx, little-endian int64 after an 8-byte magic: version 1, element type, element size, N items, S sizes, D document
marks, [N+1] where an item's dimensions begin in sizes, [N+1] positions in elements, [S] dimension sizes, [D] document
index.
"""

import os
import struct
from typing import BinaryIO

import numpy as np

from megatron.common.errors import DataError
from megatron.data.indexed_dataset.base import (
    IndexedDatasetReader,
    data_file_path,
    dtypes,
    index_file_path,
    read_header,
    read_longs,
    require_file_size,
)
from megatron.data.indexed_dataset.writing import IndexedDatasetWriter

MAGIC = b"TNTIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<8sQQQQQQ")


class IndexedDataset(IndexedDatasetReader):
    """Reads the cached format item by item from the file. Safe to use from several threads and forked processes.

    Args: path: prefix. Raises: DataError naming the file and the reason if a file is missing, truncated or foreign.
    """

    def __init__(self, path):
        self.path = str(path)
        index = index_file_path(self.path)
        header = HEADER.unpack(read_header(index, MAGIC, HEADER.size, "cached"))
        _, version, dtype_code, self.element_size, count, size_count, documents = header
        if version != VERSION:
            raise DataError(
                f"{index} has version {version} of its format; only version {VERSION} can be read"
            )
        if dtype_code not in dtypes or np.dtype(dtypes[dtype_code]).itemsize != self.element_size:
            raise DataError(f"{index} is damaged: element type {dtype_code} of {self.element_size} bytes")
        self.dtype = np.dtype(dtypes[dtype_code]).newbyteorder("<")
        longs = 2 * (count + 1) + size_count + documents
        require_file_size(index, HEADER.size + 8 * longs, f"{count} items, {documents} document marks")
        with open(index, "rb") as file:
            file.seek(HEADER.size)
            self.dim_offsets = read_longs(file, count + 1)
            self.data_offsets = read_longs(file, count + 1)
            self.dimensions = read_longs(file, size_count)
            self._doc_idx = read_longs(file, documents)
        require_file_size(
            data_file_path(self.path),
            int(self.data_offsets[-1]) * self.element_size,
            f"the last item in {index}",
        )
        self.sizes = np.diff(self.data_offsets).astype(np.int32)
        self._file = -1

    def __reduce__(self):
        return type(self), (self.path,)

    def __del__(self):
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def get(self, idx: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Elements [offset, offset + length) of item idx, flat; to its end without a length.

        Raises: IndexError for an item, offset or length outside the data.
        """
        idx = self._item_number(idx)
        size = int(self.sizes[idx])
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise IndexError(f"elements [{offset}, {end}) of item {idx} in {self.path}, which has {size}")
        start = int(self.data_offsets[idx])
        return self._read(start + offset, start + end)

    def _read(self, start: int, stop: int) -> np.ndarray:
        if self._file < 0:
            self._file = os.open(data_file_path(self.path), os.O_RDONLY)
        block = os.pread(self._file, (stop - start) * self.element_size, start * self.element_size)
        return np.frombuffer(block, dtype=self.dtype)

    def __getitem__(self, idx):
        """One item in its stored shape, or for a slice with step 1 the list of its items."""
        found = super().__getitem__(idx)
        return found if isinstance(idx, slice) else found.reshape(self._shape(self._item_number(idx)))

    def _shape(self, item: int) -> tuple[int, ...]:
        return tuple(self.dimensions[self.dim_offsets[item] : self.dim_offsets[item + 1]].tolist())

    def _element_offsets(self, start: int, stop: int) -> np.ndarray:
        return self.data_offsets[start:stop]


class IndexedCachedDataset(IndexedDataset):
    """`IndexedDataset` that holds the items named to `prefetch` in memory; others are read from the file."""

    supports_prefetch = True

    def __init__(self, path):
        super().__init__(path)
        self._cache: dict[int, np.ndarray] = {}

    def prefetch(self, indices) -> None:
        """Read these items, and forget those prefetched before unless they are among them."""
        wanted = sorted({self._item_number(idx) for idx in indices})
        self._cache = {item: self._cache.get(item, None) for item in wanted}
        for item, held in self._cache.items():
            if held is None:
                self._cache[item] = super().get(item)

    def get(self, idx: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """As `IndexedDataset.get`, without touching the file for prefetched items."""
        held = self._cache.get(self._item_number(idx))
        if held is None:
            return super().get(idx, offset, length)
        end = len(held) if length is None else offset + length
        if not 0 <= offset <= end <= len(held):
            raise IndexError(
                f"elements [{offset}, {end}) of item {idx} in {self.path}, which has {len(held)}"
            )
        return held[offset:end]


class IndexedDatasetBuilder(IndexedDatasetWriter):
    """Writes the cached format in constant memory; items may have several dimensions.

    Args: out_file: path of the .bin file; dtype: element type, which every item must have.
    """

    def __init__(self, out_file, dtype=np.int32):
        super().__init__(out_file, dtype)
        self._dim_offsets = self._spool("<i8")
        self._data_offsets = self._spool("<i8")
        self._dimensions = self._spool("<i8")
        self._doc_idx = self._spool("<i8")
        for spool in (self._dim_offsets, self._data_offsets, self._doc_idx):
            spool.append(0)

    def add_item(self, np_array) -> None:
        """Append one item."""
        array = self._as_item(np_array)
        self._write(array.tobytes())
        self.elements += array.size
        self._data_offsets.append(self.elements)
        for size in array.shape:
            self._dimensions.append(size)
        self._dim_offsets.append(len(self._dimensions))

    def end_document(self) -> None:
        """The items added since the last call form one document."""
        self._doc_idx.append(len(self._data_offsets) - 1)

    def merge_file_(self, another_file) -> None:
        """Append a data set of this format, items and documents.

        Raises: DataError if it cannot be read or has another element type.
        """
        other = IndexedDataset(another_file)
        items, elements, dimensions = len(self._data_offsets) - 1, self.elements, len(self._dimensions)
        self._append_data(other)
        self._data_offsets.extend(other.data_offsets[1:] + elements)
        self._dim_offsets.extend(other.dim_offsets[1:] + dimensions)
        self._dimensions.extend(other.dimensions)
        self._doc_idx.extend(other.doc_idx[1:] + items)

    def finalize(self, index_file) -> None:
        """Write the index and put both files in place."""
        self._put_in_place(index_file, self._write_index)

    def _write_index(self, file: BinaryIO) -> None:
        items = len(self._data_offsets) - 1
        counts = (items, len(self._dimensions), len(self._doc_idx))
        file.write(HEADER.pack(MAGIC, VERSION, self.dtype_code, self.dtype.itemsize, *counts))
        for spool in (self._dim_offsets, self._data_offsets, self._dimensions, self._doc_idx):
            for values in spool.chunks():
                file.write(values.tobytes())

"""Token files on disk: `<prefix>.bin` with the items of a data set, `<prefix>.idx` with their sizes and positions.

Two formats, both byte-compatible with GPT-NeoX's: "mmap" (megatron/data/indexed_dataset/mmap.py) and "cached"
(cached.py). Readers share one interface, `IndexedDatasetReader`.
"""

import os

import numpy as np

from megatron.common.console import print_rank_0
from megatron.common.errors import ConfigError, DataError
from megatron.data.indexed_dataset import cached, mmap
from megatron.data.indexed_dataset.base import (
    IndexedDatasetReader,
    code,
    create_doc_idx,
    data_file_path,
    dtypes,
    files_exist,
    index_file_path,
    read_longs,
    write_longs,
)
from megatron.data.indexed_dataset.cached import IndexedCachedDataset, IndexedDataset, IndexedDatasetBuilder
from megatron.data.indexed_dataset.mmap import MMapIndexedDataset, MMapIndexedDatasetBuilder

__all__ = [
    "IndexedCachedDataset",
    "IndexedDataset",
    "IndexedDatasetBuilder",
    "IndexedDatasetReader",
    "MMapIndexedDataset",
    "MMapIndexedDatasetBuilder",
    "best_fitting_dtype",
    "code",
    "create_doc_idx",
    "data_file_path",
    "dataset_exists",
    "dtypes",
    "files_exist",
    "index_file_path",
    "infer_dataset_impl",
    "make_builder",
    "make_dataset",
    "open_dataset",
    "read_longs",
    "write_longs",
]

LARGEST_UINT16_VOCABULARY = 65500
_MAGIC = {mmap.MAGIC[:8]: "mmap", cached.MAGIC: "cached"}
_READERS = {"mmap": MMapIndexedDataset, "cached": IndexedCachedDataset, "lazy": IndexedDataset}


def best_fitting_dtype(vocab_size: int | None = None) -> type:
    """Element type of token files: uint16 for a known vocabulary below 65500, else int32."""
    return np.uint16 if vocab_size is not None and vocab_size < LARGEST_UINT16_VOCABULARY else np.int32


def make_builder(out_file, impl: str, vocab_size: int | None = None):
    """The builder of a format: "mmap", or the cached format for "cached" and "lazy".

    Args: out_file: path of the .bin file; vocab_size: decides between 2 and 4 bytes per token (mmap only).
    """
    if impl == "mmap":
        return MMapIndexedDatasetBuilder(out_file, dtype=best_fitting_dtype(vocab_size))
    return IndexedDatasetBuilder(out_file, dtype=np.int32)


def dataset_exists(path, impl: str) -> bool:
    """Whether both files of a data set are there; `impl` is accepted because all formats use the same names."""
    return files_exist(path)


def infer_dataset_impl(path) -> str | None:
    """ "mmap" or "cached" by the first bytes of the index; None, with a message, if there is no index.

    Raises: DataError if the index is of neither format.
    """
    index = index_file_path(path)
    if not os.path.exists(index):
        print_rank_0(f"{index} does not exist: give the prefix of a data set, its path without .bin or .idx")
        return None
    with open(index, "rb") as file:
        impl = _MAGIC.get(file.read(8))
    if impl is None:
        raise DataError(
            f"{index} is not the index of a data set (its first bytes are of no known format); correct the path, or "
            "make the data set again"
        )
    return impl


def make_dataset(path, impl: str, skip_warmup: bool = False):
    """Open a data set: impl "infer", "mmap", "cached" or "lazy". None, with a message, if it does not exist.

    Raises: DataError naming the file and the reason if it is truncated or foreign; ConfigError for an unknown impl.
    """
    if not files_exist(path):
        print_rank_0(f"data set {path} does not exist: both {path}.idx and {path}.bin are needed")
        return None
    if impl == "infer":
        impl = infer_dataset_impl(path)
    if impl not in _READERS:
        raise ConfigError(f"unknown data_impl {impl!r}: choose one of infer, {', '.join(_READERS)}")
    return MMapIndexedDataset(path, skip_warmup) if impl == "mmap" else _READERS[impl](path)


def open_dataset(path, impl: str = "infer", skip_warmup: bool = True) -> IndexedDatasetReader:
    """`make_dataset` for callers that cannot do without: a missing file is a DataError that names it."""
    for file in (index_file_path(path), data_file_path(path)):
        if not os.path.exists(file):
            raise DataError(
                f"{file} does not exist: a data set is given as the path of its .bin and .idx without suffix"
            )
    return make_dataset(path, impl, skip_warmup)

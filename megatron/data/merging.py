"""Joining data sets on disk, and counting their tokens."""

import os
from pathlib import Path

from megatron.common.console import Progress
from megatron.common.errors import DataError
from megatron.data.indexed_dataset import (
    IndexedDatasetBuilder,
    IndexedDatasetReader,
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
    data_file_path,
    index_file_path,
    open_dataset,
)


def find_datasets(directory: str | Path) -> list[str]:
    """Sorted prefixes of all data sets directly in a folder.

    Raises: DataError if there is no such folder, no data set in it, or a file without its partner.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder: give the folder that holds the data sets to merge")
    found = {suffix: {str(path)[:-4] for path in directory.glob(f"*{suffix}")} for suffix in (".bin", ".idx")}
    for prefix in sorted(found[".bin"] ^ found[".idx"]):
        have, lack = (".bin", ".idx") if prefix in found[".bin"] else (".idx", ".bin")
        raise DataError(f"{prefix}{have} has no {prefix}{lack} beside it")
    if not found[".idx"]:
        raise DataError(f"{directory} holds no data sets (pairs of .bin and .idx files)")
    return sorted(found[".idx"])


def merge_datasets(directory: str | Path, output_prefix: str | Path) -> IndexedDatasetReader:
    """Concatenate all data sets of a folder, in the order of their names, items and documents; returns the result.

    Raises: DataError if they differ in format or element type, one is damaged, or the output would replace an input.
    """
    prefixes = find_datasets(directory)
    output = Path(output_prefix)
    if not output.parent.is_dir():
        raise DataError(f"{output.parent} is not a folder: the merged data set cannot be written there")
    if any(os.path.abspath(prefix) == os.path.abspath(output) for prefix in prefixes):
        raise DataError(f"{output} is itself one of the data sets to merge: choose another --output-prefix")
    inputs = [open_dataset(prefix) for prefix in prefixes]
    for dataset in inputs:
        if type(dataset) is not type(inputs[0]) or dataset.dtype != inputs[0].dtype:
            raise DataError(
                f"{dataset.path} ({_kind(dataset)}) cannot be joined to {inputs[0].path} ({_kind(inputs[0])})"
            )
    builder_type = (
        MMapIndexedDatasetBuilder if isinstance(inputs[0], MMapIndexedDataset) else IndexedDatasetBuilder
    )
    total = sum(os.path.getsize(data_file_path(prefix)) for prefix in prefixes)
    with (
        builder_type(data_file_path(output), dtype=inputs[0].dtype) as builder,
        Progress(total, "B", f"merging {len(prefixes)} data sets") as progress,
    ):
        for prefix in prefixes:
            builder.merge_file_(prefix)
            progress.update(os.path.getsize(data_file_path(prefix)))
        builder.finalize(index_file_path(output))
    return open_dataset(output)


def _kind(dataset: IndexedDatasetReader) -> str:
    return f"{'mmap' if isinstance(dataset, MMapIndexedDataset) else 'cached'}, {dataset.dtype}"


def count_tokens(dataset: IndexedDatasetReader) -> int:
    """Tokens of all documents."""
    return int(dataset.sizes.sum(dtype="int64"))

"""How documents fill samples: one file per way, each `build(request) -> IndexMaps`.

An index map is three arrays. doc_idx lists documents in the order they are read; row j of sample_idx is the place
(position in doc_idx, token offset) where sample j starts; item i of a data set is sample shuffle_idx[i].
All random choices come from one numpy RandomState(seed), drawn in the order the code shows: a run sees the same samples
in the same order as GPT-NeoX.
"""

from dataclasses import dataclass

import numpy as np

from megatron.common.errors import DataError
from megatron.data import helpers
from megatron.data.indexed_dataset import IndexedDatasetReader

IGNORED_LABEL = -100


@dataclass(frozen=True)
class PackingCapabilities:
    """What a way of packing is like.

    Attributes: epochs: can be built for a number of epochs instead of samples; whole_documents: samples start and end
    with documents and are padded, instead of running on over all documents with one token of overlap.
    """

    epochs: bool
    whole_documents: bool


@dataclass(frozen=True)
class PackingRequest:
    """What a map is built from.

    Attributes: description: the data in the user's words, for errors; sizes: int32 tokens of every document of the data
    set; documents: the numbers of those to use (range or int array); seq_length: tokens per sample less one;
    num_samples or num_epochs: how much is needed; allow_chopped: cut documents longer than a sample instead of leaving
    them out (whole documents only); labels: their label data, of which wholly ignored documents are left out.
    """

    description: str
    sizes: np.ndarray
    documents: range | np.ndarray
    seq_length: int
    num_samples: int | None
    num_epochs: int | None
    seed: int
    allow_chopped: bool = True
    labels: IndexedDatasetReader | None = None


@dataclass(frozen=True)
class IndexMaps:
    """doc_idx int32 or int64 [documents read]; sample_idx int32 or int64 [S+1, 2]; shuffle_idx uint32 or int64 [S];
    tokens_per_epoch: tokens of the documents used once; epochs: passes over them that the S samples make."""

    doc_idx: np.ndarray
    sample_idx: np.ndarray
    shuffle_idx: np.ndarray
    tokens_per_epoch: int
    epochs: float


def sizes_of(sizes: np.ndarray, documents: range | np.ndarray) -> np.ndarray:
    """The sizes of some documents; of a range without copying."""
    return sizes[documents.start : documents.stop] if isinstance(documents, range) else sizes[documents]


def numbers_of(documents: range | np.ndarray, dtype) -> np.ndarray:
    """The document numbers as an array."""
    if isinstance(documents, range):
        return np.arange(documents.start, documents.stop, dtype=dtype)
    return np.asarray(documents, dtype=dtype)


def build_shuffle_idx(size: int, np_rng: np.random.RandomState) -> np.ndarray:
    """A random order of `size` samples: uint32, or int64 where that is too small."""
    order = np.arange(size, dtype=np.uint32 if size < np.iinfo(np.uint32).max - 1 else np.int64)
    helpers.shuffle(order, np_rng)
    return order


def usable_documents(request: PackingRequest) -> np.ndarray:
    """bool per document: not empty, not too long (unless chopping is allowed), not wholly ignored by its labels.

    Raises: DataError if no document is left, or if neither samples nor documents were asked for.
    """
    if request.num_samples is None:
        raise DataError(
            f"{request.description}: only the packing 'packed' can be built for a number of epochs"
        )
    sizes = sizes_of(request.sizes, request.documents)
    usable = sizes > 0
    if not request.allow_chopped:
        usable = usable & (sizes <= request.seq_length + 1)
    if request.labels is not None:
        for i in np.flatnonzero(usable).tolist():
            document = request.documents[i]
            length = min(int(sizes[i]), request.seq_length)
            usable[i] = bool((request.labels.get(document, 0, length) != IGNORED_LABEL).any())
    if not usable.any():
        raise DataError(
            f"{request.description}: none of its {len(sizes)} documents can be used: they are empty, longer than a"
            f" sample of {request.seq_length + 1} tokens, or their labels leave nothing to learn"
        )
    return usable


def num_tokens_of(request: PackingRequest, documents: np.ndarray) -> int:
    """Tokens of the given documents that fit into samples: what is beyond seq_length + 1 of one is cut off."""
    return int(np.minimum(request.sizes[documents], request.seq_length + 1).sum(dtype=np.int64))

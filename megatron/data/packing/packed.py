"""Documents joined end to end, in random order, and cut into samples of equal length: nothing is padded or lost.

The documents of all epochs are shuffled together, so that no sample boundary repeats from epoch to epoch.
"""

import numpy as np

from megatron.common.errors import DataError
from megatron.data import helpers
from megatron.data.packing import (
    IndexMaps,
    PackingCapabilities,
    PackingRequest,
    build_shuffle_idx,
    numbers_of,
    sizes_of,
)
from megatron.registry import register

INT32_MAX = np.iinfo(np.int32).max


def num_tokens(documents: range | np.ndarray, sizes: np.ndarray) -> int:
    """Tokens of the given documents together."""
    return int(np.sum(sizes_of(sizes, documents), dtype=np.int64))


def num_epochs(tokens_per_epoch: int, seq_length: int, num_samples: int) -> int:
    """The fewest epochs that hold num_samples samples: the smallest E with (E * tokens - 1) // seq_length >= samples.

    Raises: DataError if there are no tokens.
    """
    if tokens_per_epoch < 1:
        raise DataError("the data has no tokens")
    return max(1, -(-(num_samples * seq_length + 1) // tokens_per_epoch))


def build_doc_idx(
    documents: range | np.ndarray, num_epochs: int, np_rng: np.random.RandomState
) -> np.ndarray:
    """int32: the documents of all epochs, shuffled as one."""
    doc_idx = np.empty((num_epochs, len(documents)), dtype=np.int32)
    doc_idx[:] = numbers_of(documents, np.int32)
    doc_idx = doc_idx.reshape(-1)
    helpers.shuffle(doc_idx, np_rng)
    return doc_idx


def build_sample_idx(
    sizes: np.ndarray, doc_idx: np.ndarray, seq_length: int, num_epochs: int, tokens_per_epoch: int
) -> np.ndarray:
    """[S+1, 2] rows (position in doc_idx, token offset): int32 where that can count all rows and documents."""
    rows = (num_epochs * tokens_per_epoch - 1) / seq_length + 1
    small = 2 * rows < INT32_MAX and len(doc_idx) < INT32_MAX
    build = helpers.build_sample_idx_int32 if small else helpers.build_sample_idx_int64
    return build(sizes, doc_idx, seq_length, num_epochs, tokens_per_epoch)


@register("packing", "packed", capabilities=PackingCapabilities(epochs=True, whole_documents=False))
def build(request: PackingRequest) -> IndexMaps:
    """Samples of seq_length + 1 tokens, the last of which is also the first of the next sample.

    Raises: DataError if the documents have too few tokens for what was asked.
    """
    tokens = num_tokens(request.documents, request.sizes)
    if tokens == 0:
        raise DataError(f"{request.description}: its {len(request.documents)} documents have no tokens")
    epochs = request.num_epochs or num_epochs(tokens, request.seq_length, request.num_samples)
    samples = (epochs * tokens - 1) // request.seq_length
    if samples == 0 and request.num_epochs:
        raise DataError(
            f"{request.description}: {epochs} epoch(s) of {tokens} tokens are less than one sample of"
            f" {request.seq_length + 1} tokens"
        )
    np_rng = np.random.RandomState(seed=request.seed)
    doc_idx = build_doc_idx(request.documents, epochs, np_rng)
    sample_idx = build_sample_idx(request.sizes, doc_idx, request.seq_length, epochs, tokens)
    shuffle_idx = build_shuffle_idx(len(sample_idx) - 1, np_rng)
    return IndexMaps(doc_idx, sample_idx, shuffle_idx, tokens, samples * request.seq_length / tokens)

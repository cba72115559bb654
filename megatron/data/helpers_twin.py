"""The functions of helpers.cpp in plain Python and numpy: the definition they are tested against, what small maps are
built with (no compiler is ever started for them), and the fallback where there is no compiler."""

from array import array
from collections.abc import Iterator

import numpy as np

CHUNK = 1 << 20


def _lengths(sizes: np.ndarray, doc_idx: np.ndarray) -> Iterator[int]:
    """Token counts of the documents in the order of doc_idx, converted by chunks to keep memory small."""
    for start in range(0, len(doc_idx), CHUNK):
        yield from sizes[doc_idx[start : start + CHUNK]].tolist()


def build_sample_idx(
    sizes, doc_idx, seq_length: int, num_epochs: int, tokens_per_epoch: int, dtype
) -> np.ndarray:
    """Rows (position in doc_idx, token offset) of where each sample of seq_length + 1 tokens starts."""
    num_samples = (num_epochs * tokens_per_epoch - 1) // seq_length
    lengths = _lengths(sizes, doc_idx)
    position = offset = 0
    have = next(lengths)
    rows = array("q", (position, offset))
    for _ in range(num_samples):
        need = seq_length
        while need >= have:
            need -= have
            have = next(lengths, None)
            if have is None:
                raise IndexError("doc_idx has fewer tokens than tokens_per_epoch says")
            position, offset = position + 1, 0
        offset += need
        have -= need
        rows.append(position)
        rows.append(offset)
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 2).astype(dtype)


def build_blending_indices(
    dataset_index, dataset_sample_index, weights, num_datasets: int, size: int
) -> None:
    """Sample t goes to the member with the largest weight * max(t, 1) - used; the first one wins ties. In place."""
    used = np.zeros(num_datasets)
    for t in range(size):
        best = int(np.argmax(weights * max(t, 1) - used))
        dataset_index[t] = best
        dataset_sample_index[t] = used[best]
        used[best] += 1


def pack_one_pass(sizes, order, limit: int, filled: int, max_samples: int) -> tuple[np.ndarray, int]:
    """Where in `order` each finished sample ends, and the tokens of the unfinished last one (-1: no document)."""
    ends = []
    for start in range(0, len(order), CHUNK):
        for i, tokens in enumerate(sizes[order[start : start + CHUNK]].tolist(), start):
            if len(ends) == max_samples:
                return np.array(ends, dtype=np.int64), filled
            if filled >= 0 and filled + tokens > limit:
                ends.append(i)
                filled = tokens
            else:
                filled = max(filled, 0) + tokens
    return np.array(ends, dtype=np.int64), filled

"""The functions of helpers.cpp in plain Python and numpy: the definition they are tested against, what small maps are
built with (no compiler is ever started for them), and the fallback where there is no compiler."""

import numpy as np


def build_sample_idx(
    sizes, doc_idx, seq_length: int, num_epochs: int, tokens_per_epoch: int, dtype
) -> np.ndarray:
    """Rows (position in doc_idx, token offset) of where each sample of seq_length + 1 tokens starts."""
    num_samples = (num_epochs * tokens_per_epoch - 1) // seq_length
    rows = np.zeros((num_samples + 1, 2), dtype=dtype)
    position = offset = 0
    for sample in range(1, num_samples + 1):
        need = seq_length
        while need >= (left := sizes[doc_idx[position]] - offset):
            need -= left
            position, offset = position + 1, 0
        offset += need
        rows[sample] = position, offset
    return rows


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
    for i, document in enumerate(order):
        if len(ends) == max_samples:
            break
        tokens = int(sizes[document])
        if filled >= 0 and filled + tokens > limit:
            ends.append(i)
            filled = tokens
        else:
            filled = max(filled, 0) + tokens
    return np.array(ends, dtype=np.int64), filled

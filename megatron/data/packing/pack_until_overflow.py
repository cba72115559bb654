"""Whole documents, as many as fit into a sample, in random order; the rest of the sample is padded."""

import numpy as np

from megatron.data import helpers
from megatron.data.packing import (
    IndexMaps,
    PackingCapabilities,
    PackingRequest,
    build_shuffle_idx,
    num_tokens_of,
    numbers_of,
    usable_documents,
)
from megatron.registry import register

NOT_OPEN = -1


@register(
    "packing", "pack_until_overflow", capabilities=PackingCapabilities(epochs=False, whole_documents=True)
)
def build(request: PackingRequest) -> IndexMaps:
    """Documents are drawn in passes, each in a new random order, and added until the next one would not fit.

    Raises: DataError if no document can be used.
    """
    usable = usable_documents(request)
    documents = numbers_of(request.documents, np.int64)
    np_rng = np.random.RandomState(seed=request.seed)
    shuffle_idx = build_shuffle_idx(request.num_samples, np_rng)
    order = np.arange(len(documents), dtype=np.int64)
    passes, boundaries = [], [np.zeros(1, dtype=np.int64)]
    read, made, filled = 0, 0, NOT_OPEN
    while made < request.num_samples:
        helpers.shuffle(order, np_rng)
        drawn = documents[order[usable[order]]]
        ends, filled = helpers.pack_one_pass(
            request.sizes, drawn, request.seq_length + 1, filled, request.num_samples - made
        )
        passes.append(drawn)
        boundaries.append(ends + read)
        read, made = read + len(drawn), made + len(ends)
    starts = np.concatenate(boundaries)
    doc_idx = np.concatenate(passes)[: starts[-1]] if passes else documents[:0]
    sample_idx = np.stack([starts, np.zeros_like(starts)], axis=1)
    tokens = num_tokens_of(request, documents[usable])
    return IndexMaps(doc_idx, sample_idx, shuffle_idx, tokens, len(doc_idx) / int(usable.sum()))

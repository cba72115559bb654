"""One document per sample, cut or padded to the sample's length."""

import numpy as np

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


@register("packing", "unpacked", capabilities=PackingCapabilities(epochs=False, whole_documents=True))
def build(request: PackingRequest) -> IndexMaps:
    """The usable documents in their order, over and over, until there are more than num_samples; samples shuffled.

    Raises: DataError if no document can be used.
    """
    usable = numbers_of(request.documents, np.int64)[usable_documents(request)]
    shuffle_idx = build_shuffle_idx(request.num_samples, np.random.RandomState(seed=request.seed))
    doc_idx = np.resize(usable, request.num_samples + 1)
    sample_idx = np.zeros((request.num_samples + 1, 2), dtype=np.int64)
    sample_idx[:, 0] = np.arange(request.num_samples + 1)
    return IndexMaps(
        doc_idx, sample_idx, shuffle_idx, num_tokens_of(request, usable), request.num_samples / len(usable)
    )

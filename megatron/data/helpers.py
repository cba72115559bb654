"""Building blocks of index maps: compiled where it pays, plain Python otherwise, with equal results.

A first start should not compile anything: while the Python twin is estimated to need less than the compiler would,
it is used, unless the compiled module is there already.
"""

from types import ModuleType

import numpy as np

from megatron.data import helpers_build, helpers_twin

# Compiling takes some 5 seconds on an idle core; the twins' costs were measured on one such core.
COMPILING_PAYS_SECONDS = 10.0
SECONDS_PER_STEP = 0.4e-6
SECONDS_PER_BLENDED_SAMPLE = 2.5e-6
SECONDS_PER_SHUFFLED_ITEM = 0.05e-6


def _compiled(twin_seconds: float) -> ModuleType | None:
    return helpers_build.load(compile_if_absent=twin_seconds > COMPILING_PAYS_SECONDS)


def build_sample_idx_int32(
    sizes, doc_idx, seq_length: int, num_epochs: int, tokens_per_epoch: int
) -> np.ndarray:
    """Where the samples of the packed map start, each of seq_length + 1 tokens, the last of which opens the next one.

    Args: sizes: int32 tokens per document; doc_idx: int32 documents in the order they are read, num_epochs times
    tokens_per_epoch tokens in all.
    Returns: int32 [(num_epochs * tokens_per_epoch - 1) // seq_length + 1, 2]: (position in doc_idx, token offset).
    Raises: IndexError if doc_idx holds fewer tokens than said.
    """
    return _build_sample_idx(np.int32, sizes, doc_idx, seq_length, num_epochs, tokens_per_epoch)


def build_sample_idx_int64(
    sizes, doc_idx, seq_length: int, num_epochs: int, tokens_per_epoch: int
) -> np.ndarray:
    """`build_sample_idx_int32` for maps that 32 bits cannot count."""
    return _build_sample_idx(np.int64, sizes, doc_idx, seq_length, num_epochs, tokens_per_epoch)


def _build_sample_idx(dtype, sizes, doc_idx, seq_length, num_epochs, tokens_per_epoch) -> np.ndarray:
    steps = len(doc_idx) + num_epochs * tokens_per_epoch // seq_length
    compiled = _compiled(steps * SECONDS_PER_STEP)
    if compiled is None:
        return helpers_twin.build_sample_idx(sizes, doc_idx, seq_length, num_epochs, tokens_per_epoch, dtype)
    build = getattr(compiled, f"build_sample_idx_{np.dtype(dtype).name}")
    return build(sizes, doc_idx, seq_length, num_epochs, tokens_per_epoch)


def build_blending_indices(
    dataset_index, dataset_sample_index, weights, num_datasets: int, size: int, verbose: bool = False
) -> None:
    """Fill in which member, and which of its samples, each sample of a blend is (greedy, closest to the weights).

    Args: dataset_index: uint8, int16 or int32 [>= size], written; dataset_sample_index: int64 [>= size], written;
    weights: float64 [num_datasets], summing to 1; verbose: print asked and realised shares (compiled form only).
    """
    compiled = _compiled(size * SECONDS_PER_BLENDED_SAMPLE)
    if compiled is None:
        helpers_twin.build_blending_indices(dataset_index, dataset_sample_index, weights, num_datasets, size)
    else:
        compiled.build_blending_indices(
            dataset_index, dataset_sample_index, weights, num_datasets, size, verbose
        )


def pack_one_pass(sizes, order, limit: int, filled: int, max_samples: int) -> tuple[np.ndarray, int]:
    """Pack whole documents, in the given order, into samples of at most `limit` tokens.

    Args: sizes: int32 tokens per document; order: int64 documents; filled: tokens already in the open sample, -1 if it
    has no document yet; max_samples: stop after that many finished samples.
    Returns: int64 positions in `order` before which a sample ends, and `filled` for the next pass.
    """
    compiled = _compiled(len(order) * SECONDS_PER_STEP)
    return (compiled or helpers_twin).pack_one_pass(sizes, order, limit, filled, max_samples)


def shuffle(values: np.ndarray, random: np.random.RandomState) -> None:
    """`random.shuffle(values)` of a 1-D int32, uint32 or int64 array: same result, same state afterwards, faster."""
    compiled = _compiled(len(values) * SECONDS_PER_SHUFFLED_ITEM)
    if compiled is None:
        random.shuffle(values)
        return
    state = random.get_state(legacy=False)
    state["state"]["pos"] = compiled.shuffle(values, state["state"]["key"], state["state"]["pos"])
    random.set_state(state)

"""GPT-NeoX's data files, and the samples it reads from them."""

import struct

import numpy as np


def write_mmap(prefix, documents: list[np.ndarray]) -> str:
    """The `mmap` pair of files, tokens as uint16."""
    sizes = [len(document) for document in documents]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * 2
    with open(f"{prefix}.bin", "wb") as file:
        for document in documents:
            file.write(document.astype("<u2").tobytes())
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(sizes), len(sizes) + 1))
        file.write(np.array(sizes, "<i4").tobytes() + starts.astype("<i8").tobytes())
        file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
    return str(prefix)


def random_documents(count: int, vocabulary: int, seed: int = 5) -> list[np.ndarray]:
    """Documents of 5 to 59 tokens with a successor rule and noise."""
    generator = np.random.RandomState(seed)
    documents = []
    for _ in range(count):
        tokens = [generator.randint(vocabulary)]
        for _ in range(generator.randint(4, 59)):
            tokens.append(
                (tokens[-1] * 3 + 1) % vocabulary if generator.rand() < 0.9 else generator.randint(vocabulary)
            )
        documents.append(np.array(tokens))
    return documents


def split_bounds(fractions: list[float], count: int) -> list[int]:
    """Where train, valid and test begin and the last one ends."""
    bounds = [0]
    for fraction in fractions:
        bounds.append(bounds[-1] + round(fraction / sum(fractions) * count))
    surplus = bounds[-1] - count
    return [0] + [bound - surplus for bound in bounds[1:]]


def packed_samples(documents: list[np.ndarray], count: int, length: int, seed: int) -> np.ndarray:
    """Samples 0..count-1 of `length` + 1 tokens, int64."""
    tokens = sum(len(document) for document in documents)
    epochs = 1
    while (epochs * tokens - 1) // length < count:
        epochs += 1
    generator = np.random.RandomState(seed)
    order = np.tile(np.arange(len(documents), dtype=np.int32), epochs)
    generator.shuffle(order)
    # One long row of all documents: sample j is its tokens j * length to (j + 1) * length, both ends included.
    row = np.concatenate([documents[number] for number in order])
    shuffled = np.arange((epochs * tokens - 1) // length, dtype=np.uint32)
    generator.shuffle(shuffled)
    return np.stack([row[j * length : (j + 1) * length + 1] for j in shuffled[:count].astype(int)]).astype(
        np.int64
    )


def write_stale_maps(prefix: str, name: str, samples: int, length: int, seed: int) -> None:
    """Index maps under GPT-NeoX's names that belong to other data."""
    for kind, content in (
        ("doc_idx", np.zeros(4, np.int32)),
        ("sample_idx", np.zeros((samples + 2, 2), np.int32)),
        ("shuffle_idx", np.zeros(samples + 1, np.uint32)),
    ):
        np.save(f"{prefix}_{name}_indexmap_{samples}ns_{length}sl_{seed}s_packedpi_ac_{kind}.npy", content)

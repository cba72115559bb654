"""Reading samples at random: the data set against raw slices of a numpy.memmap, in one run.

    python tools/benchmarks/sample_reads.py [--tokens 100000000] [--document-length 1000] [--seq-length 2048]

A packed sample is made of pieces of one or several documents. The peer knows beforehand where the pieces of each
sample lie and does no more than slice, join and convert them to int64; the data set finds them through its index maps.
A second peer reads one contiguous slice of the same length at a random place, which is less work than any sample of
several documents. All read the same number of samples from one file in the page cache, in turns; medians of the rounds.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

from megatron.common.errors import run_main  # noqa: E402
from megatron.data.gpt2_dataset import GPT2Dataset  # noqa: E402
from megatron.data.indexed_dataset import make_builder, open_dataset  # noqa: E402
from tools.benchmarks.table import print_table  # noqa: E402

SEED = 1234
VOCABULARY = 50_000


def write(prefix: str, tokens: int, document_length: int) -> None:
    """Random tokens in documents of exponentially distributed lengths."""
    generator = np.random.RandomState(SEED)
    builder = make_builder(f"{prefix}.bin", "mmap", VOCABULARY)
    for length in generator.exponential(document_length, tokens // document_length).astype(int).tolist():
        builder.add_item(generator.randint(0, VOCABULARY, length + 1).astype(np.uint16))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def pieces_of(dataset: GPT2Dataset) -> list[list[tuple[int, int]]]:
    """For every sample the [start, stop) of its pieces, in elements of the .bin file."""
    sizes = dataset.indexed_dataset.sizes
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    found = []
    for row in dataset.shuffle_idx.tolist():
        (first, begin), (last, end) = dataset.sample_idx[row : row + 2].tolist()
        documents = dataset.doc_idx[first : last + 1]
        bounds = np.stack([starts[documents], starts[documents] + sizes[documents]], axis=1)
        bounds[-1, 1] = bounds[-1, 0] + end + 1
        bounds[0, 0] += begin
        found.append([tuple(bound) for bound in bounds.tolist()])
    return found


def read_pieces(raw: np.memmap, samples: list) -> None:
    for pieces in samples:
        if len(pieces) == 1:
            raw[pieces[0][0] : pieces[0][1]].astype(np.int64)
        else:
            np.concatenate([raw[start:stop] for start, stop in pieces]).astype(np.int64)


def read_contiguous(raw: np.memmap, starts: list[int], length: int) -> None:
    for start in starts:
        raw[start : start + length].astype(np.int64)


def read_samples(dataset: GPT2Dataset, count: int) -> None:
    for i in range(count):
        dataset[i]


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Random sample reads against raw memmap slices.")
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--document-length", type=int, default=1000, help="mean tokens per document")
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/data"
        write(prefix, args.tokens, args.document_length)
        indexed = open_dataset(prefix)
        dataset = GPT2Dataset("train", prefix, range(len(indexed)), indexed, None, 1, args.seq_length, SEED)
        raw = np.memmap(f"{prefix}.bin", dtype=np.uint16, mode="r")
        pieces, count, length = pieces_of(dataset), len(dataset), args.seq_length + 1
        starts = np.random.RandomState(SEED).randint(0, len(raw) - length, count).tolist()
        sides = {
            "samples of the data set": (read_samples, dataset, count),
            "raw slices of the same pieces": (read_pieces, raw, pieces),
            "one contiguous raw slice each": (read_contiguous, raw, starts, length),
        }
        rounds = [{name: timed(*side) for name, side in sides.items()} for _ in range(args.rounds)]
    ours = next(iter(sides))
    rows = [
        [
            name,
            f"{1e6 * statistics.median(times[name] for times in rounds) / count:.2f}",
            f"{statistics.median(times[name] / times[ours] for times in rounds):.2f}",
        ]
        for name in sides
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    mean = sum(map(len, pieces)) / count
    title = f"Random reads of {count:,} samples of {length} tokens, {mean:.1f} pieces each; peak {peak / 1e9:.2f} GB"
    print_table(title, ["reads", "us per sample", "data set's speed against it"], rows)


if __name__ == "__main__":
    run_main(main)

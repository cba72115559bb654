"""preprocess_data.py against the tokenizer library's own batch encode, on the same cores, in one run.

    python tools/benchmarks/preprocessing.py [--megabytes 60] [--workers 2] [--vocab-file tokenizer.json]

The peer, `tokenizers.Tokenizer.encode_batch` with one thread per core, finds its texts in memory and drops its ids; its
clock starts when they are loaded. Our side is the whole command: start of Python and of the workers, reading and
parsing JSON lines, tokenising, writing. Both sides take turns, bound to the same cores.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megatron.common.errors import run_main  # noqa: E402
from tools.benchmarks.table import print_table  # noqa: E402

BATCH_TEXTS = 1000
VOCAB_SIZE = 32_000


def write_corpus(path: Path, megabytes: int) -> int:
    """Fill a JSON-lines file with documents of the standard library; returns the bytes of text."""
    from megatron.data.corpora.stdlib import standard_library_documents

    texts = [text for _, text in standard_library_documents()]
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in cycle(texts):
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode("utf-8", "replace"))
            if size >= megabytes * 1e6:
                return size


def train(corpus: Path, path: Path) -> None:
    """A tokenizer of ordinary size."""
    from itertools import islice

    from megatron.common.documents import read_documents
    from megatron.tokenizer.train_tokenizer import save_tokenizer, train_bpe

    save_tokenizer(train_bpe(islice(read_documents([corpus]), 700), VOCAB_SIZE, lossless=True), path)


def peer(corpus: str, vocab_file: str) -> None:
    """Encode a corpus that is in memory; prints the seconds and the processor seconds of that alone."""
    from tokenizers import Tokenizer

    with open(corpus, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    tokenizer = Tokenizer.from_file(vocab_file)
    start, busy = time.perf_counter(), time.process_time()
    for place in range(0, len(texts), BATCH_TEXTS):
        tokenizer.encode_batch(texts[place : place + BATCH_TEXTS])
    print(json.dumps([time.perf_counter() - start, time.process_time() - busy]))


def run_peer(corpus: Path, vocab_file: Path, workers: int) -> tuple[float, float]:
    """(seconds, processor seconds) of the library."""
    threads = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(workers)}
    command = [sys.executable, __file__, "--peer", corpus, "--vocab-file", vocab_file]
    done = subprocess.run(command, env={**os.environ, **threads}, check=True, capture_output=True, text=True)
    return tuple(json.loads(done.stdout))


def run_ours(corpus: Path, vocab_file: Path, workers: int) -> tuple[float, float]:
    """(seconds, processor seconds) of the whole command."""
    command = [sys.executable, ROOT / "tools" / "datasets" / "preprocess_data.py", "--input", corpus]
    command += ["--output-prefix", corpus.with_suffix(""), "--tokenizer-type", "HFTokenizer", "--append-eod"]
    command += ["--vocab-file", vocab_file, "--workers", str(workers)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Preprocessing against the tokenizer's own batch encode.")
    parser.add_argument("--megabytes", type=int, default=60, help="size of the corpus")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="cores to use")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-file", help="a tokenizer.json; default: one trained on the corpus")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        peer(args.peer, args.vocab_file)
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.workers])
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.jsonl")
        size = write_corpus(corpus, args.megabytes)
        vocab_file = Path(args.vocab_file) if args.vocab_file else Path(folder, "tokenizer.json")
        if not args.vocab_file:
            train(corpus, vocab_file)
        rounds = [
            (run_peer(corpus, vocab_file, args.workers), run_ours(corpus, vocab_file, args.workers))
            for _ in range(args.rounds)
        ]
    report(rounds, size, args.workers)


def report(rounds: list, size: int, workers: int) -> None:
    """Print medians over the rounds."""
    rows = []
    for side, name in enumerate(
        (f"encode_batch, {workers} threads", f"preprocess_data.py, {workers} workers")
    ):
        seconds = statistics.median(both[side][0] for both in rounds)
        busy = statistics.median(both[side][1] for both in rounds)
        wall_ratio = statistics.median(both[0][0] / both[side][0] for both in rounds)
        busy_ratio = statistics.median(both[0][1] / both[side][1] for both in rounds)
        rates = [f"{size / 1e6 / seconds:.2f}", f"{wall_ratio:.2f}", f"{busy:.1f}", f"{busy_ratio:.2f}"]
        rows.append([name, *rates])
    title = f"Preprocessing {size / 1e6:.0f} MB of text, median of {len(rounds)} rounds"
    print_table(title, ["", "MB/s", "ratio", "CPU s", "ratio by CPU"], rows)


if __name__ == "__main__":
    run_main(main)

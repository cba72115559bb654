"""Serve the samples of a JSON lines file to a training run with `dataset_impl: online` (docs/serving.md).

python tools/serving/sample_server.py samples.jsonl --port 10000

Each line is a prompt: {"prefix": ..., "completions": [...], "rewards": [...], "split": "train"}. Texts need the
tokenizer options, lists of token numbers none; a line without "split" is for every split. Lines are served in their
order, again and again, whichever rank asks.
"""

import argparse
import json
import os
import signal
import sys
import threading
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import ConfigError, DataError, run_main  # noqa: E402
from megatron.common.messages import SAMPLE_TOKEN  # noqa: E402
from megatron.serving.samples import SampleServer  # noqa: E402

SPLITS = ("train", "valid", "test")


class FileOfSamples:
    """The lines of a file, a few at each call.

    Args: encode: text -> token numbers, None where there is no tokenizer.
    """

    def __init__(self, path: Path, prompts: int, encode=None):
        # Texts may hold other characters that Python takes for ends of lines.
        lines = enumerate(_text(path).split("\n"), 1)
        groups = [_group(path, number, line, encode) for number, line in lines if line.strip()]
        if not groups:
            raise DataError(f"{path} has no samples in it: give it a line for each prompt")
        by_split = {s: [group for split, group in groups if split in (None, s)] for s in SPLITS}
        self.counts = {split: len(found) for split, found in by_split.items()}
        self._next = {split: cycle(found) for split, found in by_split.items()}
        self._prompts, self._lock = prompts, threading.Lock()

    def answer(self, split: str, rank: int) -> list[dict]:
        with self._lock:
            return list(islice(self._next.get(split, iter(())), self._prompts))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read as UTF-8 text: {reason}") from None


def _group(path: Path, number: int, line: str, encode) -> tuple[str | None, dict]:
    """(split, what is sent). Raises: DataError naming the line."""

    def tokens(text):
        if isinstance(text, str) and encode is None:
            raise DataError(f"{path}:{number}: texts need --tokenizer-type")
        return encode(text) if isinstance(text, str) else text

    try:
        record = json.loads(line)
        group = {
            "prefix": tokens(record["prefix"]),
            "completions": [tokens(completion) for completion in record["completions"]],
            "rewards": record["rewards"],
        }
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}:{number}: no object with prefix, completions and rewards ({error!r})"
        ) from None
    return record.get("split"), group


def _encoder(args):
    if args.tokenizer_type is None:
        return None
    from megatron.tokenizer import build_tokenizer

    made_of = {
        "tokenizer_type": args.tokenizer_type,
        "vocab_file": args.vocab_file,
        "merge_file": args.merge_file,
    }
    return build_tokenizer(
        SimpleNamespace(**made_of, rank=0, make_vocab_size_divisible_by=128, model_parallel_size=1)
    ).tokenize


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve samples of a JSON lines file to training runs.")
    parser.add_argument("file", type=Path, help="JSON lines with prefix, completions and rewards")
    parser.add_argument("--port", type=int, default=10000, help="online_dataserver_ports of the run (10000)")
    parser.add_argument(
        "--address",
        default="127.0.0.1",
        help=f"where to listen; others than this need {SAMPLE_TOKEN} to be set",
    )
    parser.add_argument("--prompts", type=int, default=16, help="lines for each request (16)")
    parser.add_argument("--tokenizer-type", help="as in the run's config, if the file has texts")
    parser.add_argument("--vocab-file")
    parser.add_argument("--merge-file")
    args = parser.parse_args()
    if args.prompts < 1:
        raise ConfigError(f"--prompts: {args.prompts} must be at least 1")
    samples = FileOfSamples(args.file, args.prompts, _encoder(args))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with SampleServer(samples.answer, args.port, args.address, os.environ.get(SAMPLE_TOKEN)) as server:
        print(f"serving {samples.counts} prompts at {server.address}:{server.port}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    run_main(main)

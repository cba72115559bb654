"""Train a byte-level BPE tokenizer on text files and save it for HFTokenizer.

python megatron/tokenizer/train_tokenizer.py --json_input_dir DIR --tokenizer_output_path tokenizer.json
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.console import info
from megatron.common.documents import find_inputs, read_documents
from megatron.common.errors import DataError, TokenizerError, run_main
from megatron.common.files import atomic_path, make_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Ids 0 and 1 of every tokenizer trained here.
SPECIAL_TOKENS = ["<|endoftext|>", "<|padding|>"]
# JSON lines first, then the other kinds, as far as the folder has them.
INPUT_PATTERNS = ("*.jsonl", "*.json", "*.jsonl.zst", "*.txt")
# A text above this goes to the trainer in parts, which costs a few word boundaries and saves much memory.
PART_CHARACTERS = 1 << 20
TARGET_OPTION = "--tokenizer_output_path"


def load_jsonl(input_path: str | Path, quiet: bool = True) -> list[dict]:
    """All records of a JSON-lines file. Raises: DataError naming file and line of a line that is not JSON."""
    records = []
    with open(input_path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise DataError(
                    f"{input_path}, line {number}: not valid JSON ({error}); correct the file"
                ) from error
    if not quiet:
        info(f"{len(records)} records in {input_path}")
    return records


def json_iterator(input_dir: str | Path, text_key: str = "text") -> Iterator[str]:
    """The texts of a folder: *.jsonl, then *.json, *.jsonl.zst and *.txt, in the order of their names.

    Raises: DataError if the folder has no such file or a record is invalid.
    """
    folder = Path(input_dir)
    files = [path for pattern in INPUT_PATTERNS for path in sorted(folder.glob(pattern))]
    if not files:
        raise DataError(f"{folder} has no file to train on: {', '.join(INPUT_PATTERNS)} are read")
    yield from read_documents(find_inputs(files), text_key)


def train_tokenizer(
    input_dir: str | Path, save_path: str | Path, tokenizer_type: str = "BPE", vocab_size: int = 52000
) -> "Tokenizer":
    """Train GPT-NeoX's kind of tokenizer: byte-level BPE over NFKC-normalised text.

    Args: save_path: JSON file to write; empty: nothing is written. Raises: TokenizerError, DataError.
    """
    if tokenizer_type != "BPE":
        raise TokenizerError(f"cannot train a tokenizer of type {tokenizer_type!r}: only BPE is known")
    if save_path:
        make_folder(Path(save_path).parent, TARGET_OPTION)  # before the work, not after it
    tokenizer = train_bpe(json_iterator(input_dir), vocab_size)
    if save_path:
        save_tokenizer(tokenizer, save_path)
    return tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int, lossless: bool = False) -> "Tokenizer":
    """A byte-level BPE tokenizer of the given size, special tokens included.

    Args: lossless: keep every text as it is, instead of normalising it (NFKC) and putting a space before it.
    Raises: TokenizerError if the vocabulary cannot hold the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: bytes and special tokens alone are {smallest}"
        )
    tokenizer = Tokenizer(models.BPE())
    if not lossless:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=not lossless)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(alphabet),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(_parts(texts), trainer)
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", path: str | Path) -> None:
    """Write the tokenizer as readable JSON; the file appears whole or not at all."""
    path = Path(path)
    make_folder(path.parent, TARGET_OPTION)
    with atomic_path(path) as temporary:
        tokenizer.save(str(temporary), pretty=True)
    info(f"saved a tokenizer of {tokenizer.get_vocab_size():,} tokens at {path}")


def _parts(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PART_CHARACTERS):
            yield text[start : start + PART_CHARACTERS]


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a byte-level BPE tokenizer.")
    parser.add_argument(
        "--json_input_dir", required=True, help="folder with .jsonl, .json, .jsonl.zst or .txt files"
    )
    parser.add_argument("--tokenizer_output_path", default="", help="JSON file to write; empty: do not save")
    parser.add_argument("--tokenizer_type", default="BPE", choices=["BPE"], help="kind of tokenizer")
    parser.add_argument(
        "-v", "--vocab_size", type=int, default=52000, help="number of tokens, default %(default)s"
    )
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> None:
    """Train as the command line says."""
    train_tokenizer(args.json_input_dir, args.tokenizer_output_path, args.tokenizer_type, args.vocab_size)


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))

"""Get a corpus and tokenise it: `python prepare_data.py stdlib` works anywhere; docs/preprocessing.md tells more."""

import argparse
from collections.abc import Sequence

from megatron.common.errors import run_main
from megatron.data.corpora.prepare import NOTHING, data_downloaders, prepare_dataset
from megatron.registry import names


def get_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Download (or collect) a corpus and tokenise it for training."
    )
    corpora = sorted(name for name in data_downloaders() if name != NOTHING)
    parser.add_argument(
        "dataset", nargs="?", default="enwik8", type=str.lower, choices=corpora, metavar="dataset"
    )
    parser.description += f" Corpora: {', '.join(corpora)}; default: enwik8. stdlib needs no network."
    parser.add_argument("-t", "--tokenizer", choices=names("tokenizer"), help="default: GPT2BPETokenizer")
    parser.add_argument("-d", "--data-dir", help="default: the environment variable DATA_DIR, else ./data")
    parser.add_argument("-v", "--vocab-file", help="the tokenizer's file, folder or name")
    parser.add_argument("-m", "--merge-file", help="the BPE merges of GPT2BPETokenizer")
    parser.add_argument("-f", "--force-redownload", action="store_true", help="do everything again")
    parser.add_argument(
        "--train-tokenizer", action="store_true", help="train a BPE tokenizer (default for stdlib)"
    )
    parser.add_argument("--vocab-size", type=int, help="size of the tokenizer to train, default 8192")
    parser.add_argument(
        "--source-url", help="where the files are: a folder's address or a YAML file of sources"
    )
    parser.add_argument("--workers", type=int, help="tokenising processes, default: all cores")
    return parser.parse_args(input_args)


def main(input_args: Sequence[str] | None = None) -> None:
    """Prepare the corpus the command line names."""
    args = get_args(input_args)
    prepare_dataset(
        dataset_name=args.dataset,
        tokenizer_type=args.tokenizer,
        data_dir=args.data_dir,
        vocab_file=args.vocab_file,
        merge_file=args.merge_file,
        force_redownload=args.force_redownload,
        num_workers=args.workers,
        train_tokenizer=args.train_tokenizer,
        vocab_size=args.vocab_size,
        source=args.source_url,
    )


if __name__ == "__main__":
    run_main(main)

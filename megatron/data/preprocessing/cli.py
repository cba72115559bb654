"""Command lines of tools/datasets/preprocess_data.py and preprocess_data_with_mask.py."""

import argparse
import re
from collections.abc import Sequence

from megatron.common.errors import ConfigError
from megatron.data.preprocessing.encode import EncodeJob
from megatron.data.preprocessing.run import PreprocessPlan, Totals, preprocess
from megatron.registry import entry, names
from megatron.tokenizer.build import TokenizerSpec


def get_parser(description: str) -> argparse.ArgumentParser:
    """The arguments both tools share. Any unambiguous beginning of an option's name is accepted."""
    parser = argparse.ArgumentParser(description=description)
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input",
        required=True,
        help="files or folders, comma separated: .jsonl, .jsonl.zst, .json.gz, .txt, .tar, .tar.gz, .zip, ...",
    )
    group.add_argument("--jsonl-keys", nargs="+", default=["text"], help="record fields, an output for each")
    group.add_argument("--num-docs", type=int, help="number of documents if known, shown with the progress")
    group.add_argument(
        "--skip-invalid", action="store_true", help="leave invalid records out instead of stopping"
    )
    group = parser.add_argument_group("tokenizer")
    group.add_argument(
        "--tokenizer-type", required=True, type=_tokenizer_type, help=", ".join(names("tokenizer"))
    )
    group.add_argument("--vocab-file", help="the tokenizer's file, folder or name")
    group.add_argument("--merge-file", help="the BPE merges of GPT2BPETokenizer")
    group.add_argument(
        "--append-eod", action="store_true", help="end every document with the end-of-document token"
    )
    group.add_argument("--ftfy", action="store_true", help="mend broken Unicode with ftfy")
    group = parser.add_argument_group("output")
    group.add_argument("--output-prefix", required=True, help="writes PREFIX_KEY_document.bin and .idx")
    group.add_argument("--dataset-impl", default="mmap", choices=["lazy", "cached", "mmap"])
    group = parser.add_argument_group("run")
    group.add_argument("--workers", type=int, default=1, help="worker processes, one thread each")
    group.add_argument(
        "--log-interval", type=int, default=100, help="documents between updates of the progress"
    )
    group.add_argument("--no-resume", action="store_true", help="do not go on with an interrupted run")
    return parser


def main(input_args: Sequence[str] | None = None) -> Totals:
    """Tokenise text into a data set. Raises: NeoXError for whatever is wrong with the input or the settings."""
    args = get_parser("Tokenise text into the data set that training reads.").parse_args(input_args)
    return _run(args, None)


def main_with_mask(input_args: Sequence[str] | None = None) -> Totals:
    """As `main`, with a second data set of labels."""
    parser = get_parser("Tokenise text into a data set and a data set of labels.")
    parser.add_argument(
        "--mask-before-token",
        type=_token_ids,
        help="comma separated ids: labels are -100 through the first occurrence of this pattern in a document",
    )
    args = parser.parse_args(input_args)
    return _run(args, args.mask_before_token)


def _run(args: argparse.Namespace, mask_before: tuple[int, ...] | None) -> Totals:
    job = EncodeJob(
        tokenizer=TokenizerSpec(args.tokenizer_type, args.vocab_file, args.merge_file),
        keys=tuple(args.jsonl_keys),
        append_eod=args.append_eod,
        ftfy=args.ftfy,
        skip_invalid=args.skip_invalid,
        mask_before=mask_before,
    )
    plan = PreprocessPlan(
        inputs=args.input,
        output_prefix=args.output_prefix,
        job=job,
        impl=args.dataset_impl,
        workers=args.workers,
        num_docs=args.num_docs,
        log_interval=args.log_interval,
        resume=not args.no_resume,
    )
    return preprocess(plan)


def _tokenizer_type(name: str) -> str:
    try:
        return entry("tokenizer", name).name
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _token_ids(text: str) -> tuple[int, ...]:
    ids = tuple(int(digits) for part in text.split(",") if (digits := re.sub(r"\D", "", part)))
    if not ids:
        raise argparse.ArgumentTypeError(f"{text!r} holds no token id")
    return ids

"""Command-line options that several of the converters in tools/ckpts have."""

import argparse


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The checkpoint that is converted: --input_dir, --config_file."""
    parser.add_argument("--input_dir", required=True, help="folder of one checkpoint (global_stepN)")
    parser.add_argument(
        "--config_file",
        nargs="*",
        default=[],
        help="config it was trained with; by itself the one kept with it",
    )


def add_layout(parser: argparse.ArgumentParser) -> None:
    """The layout of the checkpoint that is made: --tp, --pp."""
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks of the files (1)")
    parser.add_argument(
        "--pp", type=int, default=0, help="pipeline stages of the files; 0 for no pipeline (0)"
    )


def add_precision(parser: argparse.ArgumentParser, default: str, source: str) -> None:
    """--precision. Args: source: whose precision `auto` stands for."""
    parser.add_argument(
        "--precision",
        choices=("auto", "fp16", "bf16", "fp32"),
        default=default,
        help=f"auto: that of the {source} ({default})",
    )

"""Turn a checkpoint into a Hugging Face model.

python tools/ckpts/convert_neox_to_hf.py --input_dir checkpoints/global_step1000 --config_file config.yml \
    --output_dir models/mine --architecture neox
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.conversion.options import add_checkpoint, add_precision  # noqa: E402


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> None:
    """Args: overwrite_values: config keys that win over the file's."""
    parser = argparse.ArgumentParser(description="Turn a checkpoint into a Hugging Face model.")
    add_checkpoint(parser)
    parser.add_argument("--output_dir", required=True, help="gets the model")
    add_precision(parser, "auto", "config")
    parser.add_argument("--no_save_tokenizer", action="store_true", help="leave the tokenizer out")
    parser.add_argument(
        "--vocab-is-hf-tokenizer",
        action="store_true",
        help="vocab_file lies in a folder of a Hugging Face tokenizer",
    )
    parser.add_argument("--pad-token-id", type=int, default=-1, help="token id for padding; -1 for none (-1)")
    parser.add_argument("--architecture", default="neox", help="neox, llama, mistral, ... (neox)")
    parser.add_argument("--max_shard_size", default="5GB", help="size of the files (5GB)")
    args = parser.parse_args(input_args)
    from megatron.conversion.to_hf import export_hf

    export_hf(
        args.input_dir,
        args.config_file,
        args.output_dir,
        args.architecture,
        args.precision,
        save_tokenizer=not args.no_save_tokenizer,
        vocab_is_hf_tokenizer=args.vocab_is_hf_tokenizer,
        pad_token_id=None if args.pad_token_id < 0 else args.pad_token_id,
        shard_size=args.max_shard_size,
        overwrite_values=overwrite_values,
    )


if __name__ == "__main__":
    run_main(main)

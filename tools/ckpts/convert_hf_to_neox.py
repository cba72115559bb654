"""Turn a local Hugging Face model into a checkpoint, with a config that trains it.

python tools/ckpts/convert_hf_to_neox.py --input_dir models/pythia-70m --output_dir checkpoints/pythia-70m --tp 2
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.conversion.options import add_layout, add_precision  # noqa: E402


def main(input_args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Turn a local Hugging Face model into a checkpoint.")
    parser.add_argument(
        "--input_dir", required=True, help="folder with config.json and safetensors or bin files"
    )
    parser.add_argument("--output_dir", required=True, help="gets the checkpoint, config.yml and tokenizer/")
    add_layout(parser)
    add_precision(parser, "auto", "model")
    args = parser.parse_args(input_args)
    from megatron.conversion.from_hf import import_hf

    import_hf(args.input_dir, args.output_dir, args.tp, args.pp, args.precision)


if __name__ == "__main__":
    run_main(main)

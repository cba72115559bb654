"""Turn a checkpoint of Mamba layers into a model of the package mamba_ssm.

python tools/ckpts/convert_neox_to_mamba_ssm.py --input_dir checkpoints/global_step1000 --config_file config.yml \
    --output_dir models/mine
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.conversion.options import add_checkpoint, add_precision  # noqa: E402


def main(input_args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Turn a checkpoint of Mamba layers into a model of mamba_ssm."
    )
    add_checkpoint(parser)
    parser.add_argument("--output_dir", required=True, help="gets pytorch_model.bin and config.json")
    add_precision(parser, "fp32", "config")
    parser.add_argument(
        "--no_save_tokenizer", action="store_true", help="without effect: the package knows no tokenizers"
    )
    args = parser.parse_args(input_args)
    from megatron.conversion.mamba_ssm import export_mamba_ssm

    export_mamba_ssm(args.input_dir, args.config_file, args.output_dir, args.precision)


if __name__ == "__main__":
    run_main(main)

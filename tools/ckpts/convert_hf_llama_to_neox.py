"""Turn a LLaMA model of Hugging Face's form into a checkpoint: convert_hf_to_neox.py under the options and into the
folders that GPT-NeoX knows.

python tools/ckpts/convert_hf_llama_to_neox.py --tp 2 --model meta-llama/Llama-2-7b-hf --model_path checkpoints/llama
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.conversion.options import add_layout  # noqa: E402


def main(input_args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Turn a Hugging Face LLaMA model into a checkpoint.")
    add_layout(parser)
    parser.add_argument("--model", required=True, help="folder, or name on the Hugging Face hub")
    parser.add_argument(
        "--model_path", required=True, help="gets the checkpoint 0, config.yml and tokenizer/"
    )
    args = parser.parse_args(input_args)
    from megatron.conversion.from_hf import import_hf
    from megatron.conversion.hub import local_folder

    import_hf(local_folder(args.model), args.model_path, args.tp, args.pp, tag="0")


if __name__ == "__main__":
    run_main(main)

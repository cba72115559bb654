"""Turn LLaMA weights as Meta publishes them into a checkpoint.

python tools/ckpts/convert_raw_llama_weights_to_neox.py --input_dir llama --model_size 13B --output_dir checkpoints/13B
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402

SIZES = ("7B", "mistral-7B-v0.1", "13B", "30B", "34B", "65B", "70B", "tokenizer_only")


def main(input_args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Turn LLaMA weights as Meta publishes them into a checkpoint."
    )
    parser.add_argument(
        "--input_dir", required=True, help="folder of SIZE/params.json and SIZE/consolidated.NN.pth"
    )
    parser.add_argument(
        "--model_size",
        default="7B",
        help=f"name of the model's folder: {', '.join(SIZES)} or another (7B); tokenizer_only copies the tokenizer",
    )
    parser.add_argument("--output_dir", required=True, help="gets the checkpoint, config.yml and tokenizer/")
    parser.add_argument(
        "--num_output_shards", type=int, default=1, help="tensor-parallel ranks of the files (1)"
    )
    parser.add_argument("--pipeline_parallel", action="store_true", help="write a file for each layer")
    parser.add_argument("--max_position_embeddings", type=int, help="longest text of the model (2048)")
    args = parser.parse_args(input_args)
    from megatron.conversion.meta_llama import import_meta

    import_meta(
        args.input_dir,
        args.model_size,
        args.output_dir,
        tensor=args.num_output_shards,
        pipe=int(args.pipeline_parallel),
        longest=args.max_position_embeddings,
    )


if __name__ == "__main__":
    run_main(main)

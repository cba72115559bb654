"""Join all data sets (pairs of .bin and .idx files) of a folder into one.

python tools/datasets/merge_datasets.py --input data/shards --output-prefix data/all
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.data.merging import count_tokens, merge_datasets  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Join all data sets of a folder into one, in the order of their names."
    )
    parser.add_argument("--input", required=True, help="folder with the pairs of .bin and .idx files")
    parser.add_argument(
        "--output-prefix", required=True, help="path of the new data set, without .bin and .idx"
    )
    args = parser.parse_args()
    merged = merge_datasets(args.input, args.output_prefix)
    print(f"{args.output_prefix}: {len(merged):,} documents, {count_tokens(merged):,} tokens")


if __name__ == "__main__":
    run_main(main)

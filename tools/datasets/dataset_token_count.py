"""Count the tokens of data sets.

python tools/datasets/dataset_token_count.py [--verify] data/a_text_document data/b_text_document
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.data.indexed_dataset import open_dataset  # noqa: E402
from megatron.data.merging import count_tokens  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the tokens of data sets.")
    parser.add_argument("prefixes", nargs="*", help="paths of data sets, without .bin and .idx")
    parser.add_argument(
        "--verify", action="store_true", help="also check that the index contradicts itself nowhere"
    )
    args = parser.parse_args()
    if not args.prefixes:
        parser.print_usage()
        return 1
    for prefix in args.prefixes:
        dataset = open_dataset(prefix)
        if args.verify:
            dataset.verify()
        print(f"{prefix}: {count_tokens(dataset)} tokens")
    return 0


if __name__ == "__main__":
    run_main(main)

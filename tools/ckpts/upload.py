"""Upload a converted checkpoint to the Hugging Face hub.

python tools/ckpts/upload.py converted_checkpoint owner/name main [--public]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.checkpointing.hub import upload_to_hub  # noqa: E402
from megatron.common.errors import run_main  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Upload a converted checkpoint to the Hugging Face hub.")
    parser.add_argument("converted_dir", help="folder to upload")
    parser.add_argument("repo", help="repository, owner/name; made if it is not there")
    parser.add_argument("branch", help="branch; made if it is not there")
    parser.add_argument("--public", action="store_true", help="a new repository is for everybody to see")
    args = parser.parse_args()
    address = upload_to_hub(args.converted_dir, args.repo, args.branch, private=not args.public)
    print(f"uploaded {args.converted_dir} to {address}")


if __name__ == "__main__":
    run_main(main)

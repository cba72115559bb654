"""Tokenise text into the data set that training reads; see docs/preprocessing.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.common.errors import run_main  # noqa: E402
from megatron.data.preprocessing.cli import main  # noqa: E402

if __name__ == "__main__":
    run_main(main)

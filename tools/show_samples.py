#!/usr/bin/env python
"""Show what generate.py has written: `python tools/show_samples.py samples.txt`."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.common.errors import DataError, run_main  # noqa: E402

WIDTH = 80


def main(input_args: list[str] | None = None) -> None:
    """Print every record of a JSON lines file: the prompt, the continuation, what was remarked.

    Raises: DataError when the file cannot be read or is of another kind.
    """
    parser = argparse.ArgumentParser(description="Show the samples that generate.py has written.")
    parser.add_argument("file", help="sample_output_file of generate.py, JSON lines")
    path = Path(parser.parse_args(input_args).file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', 'not UTF-8 text')}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            text = show(record)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a record of generate.py") from error
        ending = "finished" if record["finished"] else "cut off"
        print(f"--- sample {number}, {record['length']} tokens, {ending} ".ljust(WIDTH, "-"))
        print(text)
    print("-" * WIDTH)


def show(record: dict) -> str:
    """Prompt and continuation as one text, or the remark on why there is none."""
    if record["text"] is None:
        return f"{record['context']}\n({record['message']})"
    return record["context"] + record["text"]


if __name__ == "__main__":
    run_main(main)

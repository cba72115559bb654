"""The process in which a function is run on the GPU that is none: process.py LIBRARY MODULE:FUNCTION ANSWER."""

import ctypes
import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    library, where, answer = sys.argv[1:]
    ctypes.CDLL(library)
    module, name = where.split(":")
    Path(answer).write_text(json.dumps(getattr(importlib.import_module(module), name)()))


if __name__ == "__main__":
    main()

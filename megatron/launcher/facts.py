"""What a host is like, as one marked line of JSON on standard output: `python facts.py`.

Runs by itself on hosts where nothing may be installed yet: standard library only, nothing of this package.
"""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

MARK = "neox-facts:"
ROOT = Path(__file__).resolve().parents[2]
# What decides whether two hosts compute the same and speak the same protocols.
PACKAGES = (
    "torch",
    "deepspeed",
    "numpy",
    "tokenizers",
    "transformers",
    "triton",
    "flash-attn",
    "transformer-engine",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
)


def gather() -> dict:
    """Facts of this host: names, Python, packages, a digest of the project, devices, and the time (s since 1970)."""
    return {
        "host": socket.gethostname(),
        "node_name": os.environ.get("SLURMD_NODENAME"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "project": project_digest(ROOT),
        "gpus": _gpus(),
        "time": time.time(),
    }


def project_digest(root: Path) -> str:
    """A digest of the program's sources: equal on two hosts that run the same program."""
    digest = hashlib.sha256()
    kinds = ("*.py", "megatron/**/*.py", "megatron/**/*.c*", "megatron/**/*.h")
    for path in sorted({path for kind in kinds for path in root.glob(kind)}):
        if "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[dict] | None:
    """Memory of each device in MiB; None where the driver's program is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split(
            "\n"
        )
        return [
            dict(zip(("used", "total"), map(int, line.split(",")), strict=True)) for line in lines if line
        ]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


if __name__ == "__main__":
    sys.stdout.write(f"\n{MARK}{json.dumps(gather())}\n")

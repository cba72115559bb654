"""The commit of the source tree."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def get_git_commit_hash() -> str | None:
    """`git describe --always` of the tree this package lies in; None outside a repository or without git."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None

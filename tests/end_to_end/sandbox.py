"""A copy of the project to run the real command lines in, with an environment that needs no installation."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.common.paths import ROOT
from tests.common.runs import environment, meeting

# What runs have left in the project's own folder; megatron/data and the like are no such thing.
LEFT_BY_RUNS = {".git", ".venv", "data", "checkpoints", "logs", "tensorboard", "samples", "wandb"}
STAMPS = (".base", ".dev")  # what the Makefile looks at to see whether requirements are installed


def make_sandbox(path: Path) -> Path:
    """Copy the project to `path` and give it a `.venv` that is the running interpreter's."""
    shutil.copytree(ROOT, path, ignore=_ignored)
    environment = path / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name not in STAMPS:
            (environment / entry.name).symlink_to(entry)
    for stamp in STAMPS:
        (environment / stamp).touch()
    return path


def _ignored(folder: str, names: list[str]) -> set[str]:
    caches = {name for name in names if name == "__pycache__" or name.endswith("_cache")}
    return caches | LEFT_BY_RUNS if Path(folder) == ROOT else caches


def shorten(config: Path, **values) -> None:
    """Give keys of a configuration file other numbers; each must be there once."""
    text = config.read_text(encoding="utf-8")
    for key, value in values.items():
        text, count = re.subn(rf'("?{key}"?:\s*)[\d.e+-]+', rf"\g<1>{value}", text)
        assert count == 1, f"{key} is {count} times in {config}"
    config.write_text(text, encoding="utf-8")


def run_script(script: str, directory: Path, timeout: float = 600.0) -> str:
    """Run bash lines as one script that ends at the first failure; returns what was shown."""
    given = {key: value for key, value in environment().items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env=given | meeting(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, (
        f"exit code {done.returncode} of\n{script}\n--- output\n{done.stdout[-6000:]}"
    )
    return done.stdout

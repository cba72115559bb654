"""Check the files of checkpoints against their manifests. The exit status is 1 if anything is damaged or unknown.

python tools/ckpts/verify.py checkpoints [checkpoints/global_step100 ...]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.checkpointing import manifest  # noqa: E402
from megatron.checkpointing.names import LATEST, get_checkpoint_tag, read_latest, saved_iterations  # noqa: E402
from megatron.common.errors import CheckpointError, run_main  # noqa: E402


def checkpoints_at(place: Path) -> list[Path]:
    """A checkpoint itself, or those in the folder that a run has saved to."""
    if (place / manifest.MANIFEST).is_file():
        return [place]
    names = [get_checkpoint_tag(iteration) for iteration in saved_iterations(place)]
    latest = read_latest(place)
    if latest is not None and latest not in names and (place / latest).is_dir():
        # Converted checkpoints have other names.
        names.append(latest)
    found = [place / name for name in names]
    if not found:
        raise CheckpointError(f"{place} is no checkpoint with a {manifest.MANIFEST} and holds none")
    return found


def problems_at(place: Path) -> list[str]:
    """Print a line for each checkpoint of a place. Returns: what is wrong."""
    found: list[str] = []
    try:
        directories = checkpoints_at(place)
    except CheckpointError as error:
        # The other places are looked at all the same.
        print(f"error: {error}", file=sys.stderr)
        return [str(error)]
    for directory in directories:
        if manifest.is_foreign(directory):
            wrong = [f"no {manifest.MANIFEST}: it cannot be verified"]
        else:
            wrong = list(manifest.problems(directory))
        found += wrong
        print(f"{directory}: " + ("; ".join(wrong) or "complete and undamaged"))
    latest = read_latest(place)
    if latest is not None and not (place / latest).is_dir():
        found.append(f"{place / LATEST} names {latest}, which is not there")
        print(found[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the files of checkpoints against their manifests.")
    parser.add_argument(
        "places", nargs="+", type=Path, help="checkpoints, or folders that runs have saved to"
    )
    return int(any([problems_at(place) for place in parser.parse_args().places]))


if __name__ == "__main__":
    run_main(main)

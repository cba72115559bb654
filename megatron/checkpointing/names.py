"""Names of checkpoints and of the files in them."""

import re
from pathlib import Path

LATEST = "latest"
WEIGHT_FILES = "*model_states.pt"
RANK_OPTIMIZER_FILES = "optimizer_rank_*.pt"
_TAG = re.compile(r"global_step(\d+)")


def get_checkpoint_tag(iteration: int | str) -> str:
    """Folder name of the checkpoint of an iteration."""
    return f"global_step{iteration}"


def iteration_of_tag(name: str) -> int | None:
    """The iteration a folder name stands for; None if it is not exactly a checkpoint's name."""
    match = _TAG.fullmatch(name)
    return int(match.group(1)) if match else None


def partial_tag(iteration: int | str) -> str:
    """Name of the folder a checkpoint is written into before it is complete; "*" gives the pattern of all of them."""
    return f".{get_checkpoint_tag(iteration)}.partial"


def replaced_tag(tag: str) -> str:
    """Name of the folder a checkpoint moves to while another one of its name takes its place; "*" as above."""
    return f".{tag}.replaced"


def saved_iterations(directory: str | Path) -> list[int]:
    """Iterations of all checkpoint folders, also those that lie elsewhere and are linked to, ascending."""
    found = [iteration_of_tag(path.name) for path in Path(directory).glob("global_step*") if path.is_dir()]
    return sorted(iteration for iteration in found if iteration is not None)


def read_latest(directory: str | Path) -> str | None:
    """The tag that `latest` names; None if there is no such file, or it names no folder beside itself."""
    path = Path(directory, LATEST)
    tag = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    return tag if tag == Path(tag).name and tag != ".." else None


def get_checkpoint_name(
    checkpoints_path: str, iteration: int, release: bool = False, mp_rank: int | None = None
) -> str:
    """File name of Megatron's older layout: `iter_0000010/mp_rank_00/model_optim_rng.pt`."""
    if mp_rank is None:
        from megatron import mpu

        mp_rank = mpu.get_model_parallel_rank()
    folder = "release" if release else f"iter_{iteration:07d}"
    return str(Path(checkpoints_path, folder, f"mp_rank_{mp_rank:02d}", "model_optim_rng.pt"))


def rank_optimizer_file(directory: str | Path, rank: int) -> Path:
    """Where a global rank keeps optimizer states that no other rank has."""
    return Path(directory, f"optimizer_rank_{rank:05d}.pt")


def ensure_directory_exists(filename: str) -> None:
    """Make the folder a file is to be written into."""
    Path(filename).parent.mkdir(parents=True, exist_ok=True)

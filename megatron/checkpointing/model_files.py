"""The files of a checkpoint's model ranks, which hold weights or their shapes and all that was kept beside them.

A model rank is one pipeline stage of one tensor-parallel rank; its number is stage * tensor ranks + tensor rank.
"""

import re
from pathlib import Path

from megatron import mpu
from megatron.checkpointing.names import iteration_of_tag
from megatron.checkpointing.safe_engine import load_file
from megatron.common.errors import CheckpointError

_MODEL_FILE = re.compile(r"(?:zero_pp_rank_0_)?mp_rank_(\d+)_model_states\.pt")


def model_rank_files(directory: str | Path) -> dict[int, Path]:
    """{model rank: its file}, of the first data-parallel rank where there is one for each (ZeRO-3)."""
    matches = ((_MODEL_FILE.fullmatch(path.name), path) for path in sorted(Path(directory).iterdir()))
    return {int(match[1]): path for match, path in matches if match}


class ModelFiles:
    """Reads the files of all model ranks, each at most once.

    Args: tensor_size: tensor-parallel degree of the checkpoint.
    Attributes: stages: number of its pipeline stages.
    Raises: CheckpointError if files are missing.
    """

    def __init__(self, directory: str | Path, tensor_size: int):
        self.directory, self.tensor_size = Path(directory), tensor_size
        self._paths = model_rank_files(directory)
        count = len(self._paths)
        if not count or sorted(self._paths) != list(range(count)) or count % tensor_size:
            raise CheckpointError(
                f"{directory} has {count} mp_rank_*_model_states.pt files, not one for each pipeline stage and each of "
                f"{tensor_size} tensor rank(s): some are missing"
            )
        self.stages = count // tensor_size
        self._states: dict[int, dict] = {}

    def state(self, stage: int, tensor_rank: int) -> dict:
        """What the file of a model rank holds; its tensors are read when they are used."""
        number = stage * self.tensor_size + tensor_rank
        if number not in self._states:
            self._states[number] = load_file(self._paths[number], mmap=True)
        return self._states[number]

    def path(self, stage: int, tensor_rank: int) -> Path:
        return self._paths[stage * self.tensor_size + tensor_rank]


def first_state(directory: str | Path) -> dict:
    """What the file of the first model rank holds; empty if there is none, as beside bare layer files."""
    paths = model_rank_files(directory)
    return load_file(paths[min(paths)], mmap=True) if paths else {}


def state_of_this_rank(directory: str | Path, tensor_size: int) -> dict:
    """What was kept for this process's model rank; empty where the checkpoint has other model ranks than this run."""
    paths, stages = model_rank_files(directory), mpu.get_pipe_parallel_world_size()
    own = mpu.get_pipe_parallel_rank() * tensor_size + mpu.get_model_parallel_rank()
    same = tensor_size == mpu.get_model_parallel_world_size() and len(paths) == stages * tensor_size
    return load_file(paths[own], mmap=True) if same and own in paths else {}


def saved_iteration(state: dict, directory: Path) -> int:
    """The iteration a checkpoint was saved at; older programs called it total_iters, converters leave it to the name.

    Raises: CheckpointError if nothing tells.
    """
    for key in ("iteration", "total_iters"):
        if key in state:
            return int(state[key])
    iteration = iteration_of_tag(directory.name)
    if iteration is None:
        raise CheckpointError(f"{directory} does not say which iteration it was saved at (no key iteration)")
    return iteration

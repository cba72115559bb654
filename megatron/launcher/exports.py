"""Environment variables that a job's processes get on every host."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.common.errors import LaunchError
from megatron.common.messages import SAMPLE_TOKEN, WEIGHT_TOKEN

# What travels by itself: names, and beginnings of names that end in "_". Anything else goes into .deepspeed_env.
CARRIED = (
    *("PYTHON_", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONHASHSEED", "PYTHONFAULTHANDLER", "LD_LIBRARY_PATH"),
    *(
        "NCCL_",
        "GLOO_",
        "UCX_",
        "MV2_",
        "FI_",
        "TORCH_",
        "TORCHINDUCTOR_",
        "PYTORCH_",
        "TRITON_",
        "DS_",
        "NVTE_",
    ),
    *("OMP_", "MKL_", "OPENBLAS_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "MLFLOW_"),
    *("LOGLEVEL", "DATA_DIR"),
    *(WEIGHT_TOKEN, SAMPLE_TOKEN),
)
# What an experiment tracker reads, among it the key of somebody's account.
_TRACKERS = {"wandb": "WANDB_", "comet": "COMET_"}
_FILE_VARIABLE = "DS_ENV_FILE"
_FILE_NAME = ".deepspeed_env"


def exports(job: Any, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for the processes of a job on several hosts.

    Carried are the libraries' settings, those of the trackers that the job uses, the working folder as PYTHONPATH, and
    last, winning, what .deepspeed_env of the home and of the working folder says.

    Raises: LaunchError for a line of .deepspeed_env that is none.
    """
    names = (*CARRIED, *(_TRACKERS[tracker] for tracker in job.trackers))
    found = {name: value for name, value in environment.items() if _is_carried(name, names)}
    found |= job.keys
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (os.getcwd(), environment.get("PYTHONPATH"))))
    name = environment.get(_FILE_VARIABLE, _FILE_NAME)
    for folder in dict.fromkeys((Path.home(), Path.cwd())):
        if (folder / name).is_file():
            found |= read_environment_file(folder / name)
    return found


def inherited(job: Any, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the program behind `launcher` itself gets.

    Some of these programs carry all of it to the hosts, so it has no key to a tracker that the job does not use.
    """
    unused = tuple(f"{prefix}API_KEY" for tracker, prefix in _TRACKERS.items() if tracker not in job.trackers)
    return {name: value for name, value in environment.items() if name not in unused}


def read_environment_file(path: Path) -> dict[str, str]:
    """NAME=VALUE of each line; empty lines and those that begin with "#" are left out.

    Raises: LaunchError.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", entry)
        if match is None:
            raise LaunchError(f"{path}, line {number}: {entry!r} is not of the form NAME=VALUE")
        found[match[1]] = match[2]
    return found


def _is_carried(name: str, names: tuple[str, ...]) -> bool:
    return any(name == each or (each.endswith("_") and name.startswith(each)) for each in names)

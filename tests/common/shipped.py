"""The files in configs/, each with what it is meant to be combined with."""

from pathlib import Path
from typing import Any

from megatron.neox_arguments import NeoXArgs
from megatron.neox_arguments.loading import read_files
from tests.common.paths import ROOT

CONFIGS = ROOT / "configs"
LOCAL = "local_setup.yml"
TRAINING = "llama/train_config.yml"


def files() -> list[str]:
    """Names of all config files, relative to configs/."""
    found = [*CONFIGS.rglob("*.yml"), *CONFIGS.rglob("*.json")]
    return sorted(str(path.relative_to(CONFIGS)) for path in found)


def values_of(name: str) -> dict[str, Any]:
    """What a file sets."""
    return read_files([CONFIGS / name])[0]


def models() -> list[str]:
    """Names of the files that describe a model."""
    return [name for name in files() if "num_layers" in values_of(name)]


def with_training(name: str) -> list[str]:
    """A model's file, and the training part if it has none itself."""
    return [name] if "optimizer" in values_of(name) else [name, TRAINING]


def with_companions(name: str) -> list[str]:
    """The files that make a run together with a model's file: itself, a training part and data paths."""
    own = with_training(name)
    taken = set(values_of(name))
    return own if taken & set(values_of(LOCAL)) else [*own, LOCAL]


def load(names: list[str], **overrides: Any) -> NeoXArgs:
    """The configuration that files make together, on as many devices as one replica of the model needs."""
    return NeoXArgs.from_ymls(
        [str(CONFIGS / name) for name in names],
        overwrite_values={"global_num_gpus": replica(names)} | overrides,
    )


def replica(names: list[str]) -> int:
    """Devices that hold one copy of the model."""
    values = read_files([Path(CONFIGS / name) for name in names])[0]
    return max(1, values.get("pipe_parallel_size", 0)) * values.get("model_parallel_size", 1)

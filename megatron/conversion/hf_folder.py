"""Folders of Hugging Face models: config and tensors, each read when it is asked for."""

import functools
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from megatron.checkpointing.safe_engine import load_file
from megatron.common.errors import CheckpointError, ConfigError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# How a file begins that git clones where git-lfs is not installed.
_LFS = b"version https://git-lfs"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class HFFolder:
    """The tensors of a model, in safetensors or torch files, one or several.

    Attributes: names: of all tensors. Raises: CheckpointError when the folder has no weights, or not all of them.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._files = _files_of_tensors(self.folder)
        self._open: dict[Path, Any] = {}

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def read(self, name: str) -> torch.Tensor:
        """A tensor; pages of its file are read when it is used."""
        file = self._file(name)
        return file[name] if isinstance(file, dict) else file.get_tensor(name)

    def dtype(self, names: Iterable[str]) -> torch.dtype:
        """The number format that holds all of these tensors exactly."""
        return functools.reduce(torch.promote_types, {self._dtype(name) for name in names})

    def _dtype(self, name: str) -> torch.dtype:
        file = self._file(name)
        if isinstance(file, dict):
            return file[name].dtype
        code = file.get_slice(name).get_dtype()
        if code not in _DTYPES:
            raise CheckpointError(
                f"{name} in {self._files[name]} has numbers of the kind {code}, not {', '.join(_DTYPES)}"
            )
        return _DTYPES[code]

    def _file(self, name: str) -> Any:
        path = self._files[name]
        if path not in self._open:
            file = _open(path)
            listed = {name for name, place in self._files.items() if place == path}
            if missing := sorted(listed - set(file.keys())):
                raise CheckpointError(
                    f"{path} has no {missing[0]}, which the index of the weights looks for there; fetch the model again"
                )
            self._open[path] = file
        return self._open[path]


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(folder, index)
        if (path := folder / name).is_file():
            return dict.fromkeys(_open(path).keys(), path)
    raise CheckpointError(
        f"{folder} holds no weights of a Hugging Face model ({' or '.join(_WEIGHTS)}, or an index of several)"
    )


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): folder / str(file) for name, file in places.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of weights; fetch it again") from error
    if missing := sorted({path.name for path in files.values() if not path.is_file()}):
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {index.name} names; fetch them")
    return files


def _open(path: Path) -> Any:
    """A dict of tensors, or a safetensors file, which has `keys` too."""
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CheckpointError(f"{path} only points to the weights: fetch the file itself (git lfs pull)")
    if path.suffix != ".safetensors":
        content = load_file(path, mmap=True)
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds no weights by name, but a {type(content).__name__}")
        return content
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """All keys of config.json, with the defaults of transformers for those that it leaves out.

    Raises: ConfigError if there is none, or transformers does not know the model.
    """
    path = Path(folder, "config.json")
    if not path.is_file():
        raise ConfigError(f"{folder} is no folder of a Hugging Face model (it has no config.json)")
    from transformers import AutoConfig

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what transformers raises is of many kinds
        # A first line that ends so announces the reason.
        reason = re.sub(r":\s+", ": ", str(error)).splitlines()[0]
        raise ConfigError(f"{path} cannot be used: {reason}") from error
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"{path}: quantization_config: quantised weights cannot be had here; take the model they were made of"
        )
    return config.to_dict() | {"model_type": config.model_type}

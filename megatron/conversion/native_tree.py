"""Writing a checkpoint of weights for any number of tensor and pipeline ranks, tensor by tensor.

Files are laid out without content first, so that however large they are only what is being copied has to be in memory.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from megatron.checkpointing import manifest
from megatron.checkpointing.names import LATEST
from megatron.checkpointing.saved_config import CONFIG
from megatron.checkpointing.streamed_file import BlankFile, Keys, Streamed
from megatron.checkpointing.writing import write_tensors
from megatron.common.console import warn
from megatron.common.errors import CheckpointError
from megatron.common.files import atomic_write_text, fsync_directory, fsync_file, remove
from megatron.conversion.casting import cast
from megatron.mpu import ParameterSpec, local_slice

CONFIG_FILE = "config.yml"
VOCABULARY = ("word_embeddings.weight", "final_linear.weight", "final_linear.bias")


def refuse_existing(directory: Path) -> None:
    """Raises: CheckpointError if a checkpoint would be written over."""
    if directory.exists():
        raise CheckpointError(f"{directory} is there already; choose another folder, or remove it")


class NativeTree:
    """A checkpoint to be filled with `put` and completed with `seal`; `discard` leaves nothing behind.

    Args:
        root: folder that gets the checkpoint; tag: name of the checkpoint in it.
        specs: all parameters of the model as the layout pads them.
        tensor, pipe: ranks; with pipe 0 all layers of a tensor rank are in one file.
        dtype: of what is written.
    """

    def __init__(
        self,
        root: str | Path,
        tag: str,
        specs: Mapping[str, ParameterSpec],
        tensor: int,
        pipe: int,
        dtype: torch.dtype,
    ):
        self.root, self.directory = Path(root), Path(root, tag)
        self.specs, self.tensor, self.pipe, self.dtype = specs, tensor, pipe, dtype
        refuse_existing(self.directory)
        self._partial = self.root / f".{tag}.partial"
        self._unfinished: Path | None = self._partial
        remove(self._partial)
        self._partial.mkdir(parents=True)
        try:
            self._places = [self._lay_out(rank) for rank in range(tensor)]
        except BaseException:
            self.discard()
            raise

    def _lay_out(self, rank: int) -> dict[str, tuple[BlankFile, Keys]]:
        """Make the files of a tensor rank. Returns: {logical name: (its file, its place there)}."""
        blanks = {
            name: Streamed(spec.local_shape(self.tensor), self.dtype, []) for name, spec in self.specs.items()
        }
        kept = {
            "dp_world_size": 1,
            "mp_world_size": self.tensor,
            "optimizer": {},
            "global_steps": 0,
            "skipped_steps": 0,
            "iteration": 0,
        }
        if not self.pipe:
            module = {f"sequential.{name}": blank for name, blank in blanks.items()}
            whole = BlankFile(
                self._partial / f"mp_rank_{rank:02d}_model_states.pt", {**kept, "module": module}
            )
            return {name: (whole, ("module", f"sequential.{name}")) for name in blanks}
        for stage in range(self.pipe):
            file = f"mp_rank_{stage * self.tensor + rank:02d}_model_states.pt"
            write_tensors(kept | {"module": None}, self._partial / file)
        layers: dict[int, dict[str, Streamed]] = {}
        for name, blank in blanks.items():
            layer, path = name.split(".", 1)
            layers.setdefault(int(layer), {})[path] = blank
        places: dict[str, tuple[BlankFile, Keys]] = {}
        for number, content in layers.items():
            own = BlankFile(self._partial / f"layer_{number:02d}-model_{rank:02d}-model_states.pt", content)
            places |= {f"{number}.{path}": (own, (path,)) for path in content}
        return places

    def put(self, name: str, logical: torch.Tensor) -> None:
        """Write a parameter; rows that a vocabulary is padded with become zero.

        Raises: CheckpointError if it has another shape than the model's or numbers that `dtype` cannot hold.
        """
        spec = self.specs[name]
        missing = spec.logical_shape[0] - logical.shape[0]
        if name.endswith(VOCABULARY) and missing > 0:
            logical = torch.cat([logical, logical.new_zeros(missing, *logical.shape[1:])])
        if tuple(logical.shape) != tuple(spec.logical_shape):
            raise CheckpointError(
                f"{name} would be {tuple(logical.shape)}, but the config describes {tuple(spec.logical_shape)}"
            )
        logical = cast(logical, self.dtype, name)
        for rank, places in enumerate(self._places):
            file, keys = places[name]
            file.write(keys, local_slice(logical, spec, rank, self.tensor))

    def seal(self, config: Mapping[str, Any], header: str, description: Mapping[str, Any]) -> Path:
        """Write configs and manifest, put the folder in its place and point `latest` at it.

        Args: config: the config that trains the model; header: what its file says first; description: what the
        manifest says beside the files.
        Returns: the config file: beside the folder, or, if another one is there already, which is left alone, in it.
        """
        text = header + yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        (self._partial / "configs").mkdir()
        (self._partial / "configs" / CONFIG_FILE).write_text(text, encoding="utf-8")
        (self._partial / CONFIG).write_text(json.dumps(dict(config), indent=1), encoding="utf-8")
        records = {}
        for name in manifest.content_files(self._partial):
            fsync_file(self._partial / name)
            records[name] = manifest.file_record(self._partial / name)
        created = {"created": time.strftime(manifest.TIME_FORMAT), "iteration": 0}
        manifest.write_manifest(self._partial, records, {**created, **description})
        file = self._place_config(text)
        os.rename(self._partial, self.directory)
        self._unfinished = self.directory
        fsync_directory(self.root)
        atomic_write_text(self.root / LATEST, self.directory.name)
        self._unfinished = None
        return file

    def _place_config(self, text: str) -> Path:
        own = self.root / CONFIG_FILE
        if own.exists() and own.read_text(encoding="utf-8", errors="replace") != text:
            within = self.directory / "configs" / CONFIG_FILE
            warn(f"{own} is there already and stays as it is: the config of this model is {within}")
            return within
        atomic_write_text(own, text)
        return own

    def discard(self) -> None:
        """Remove what has been written, unless all of it is in its place."""
        if self._unfinished is not None:
            remove(self._unfinished)

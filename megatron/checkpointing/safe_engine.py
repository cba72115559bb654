"""Reading and writing checkpoint files without running code from them."""

import contextlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from megatron.checkpointing.snapshot import HostMemory, snapshot
from megatron.checkpointing.writing import retried, write_tensors
from megatron.common import activity
from megatron.common.errors import CheckpointError

# What DeepSpeed copies from its files into tensors that are there already.
_COPIED = (
    "module",
    "frozen_param_fragments",
    "single_partition_of_fp32_groups",
    "fp32_groups_flat",
    "fp32_flat_groups",
)


def _allowed() -> list:
    """The plain data classes, beside tensors and containers, that DeepSpeed and GPT-NeoX write into checkpoints."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    reconstruct = numpy._core.multiarray._reconstruct
    return [
        LossScaler,
        DynamicLossScaler,
        ZeroStageEnum,
        fragment_address,
        # The module it was defined in before DeepSpeed 0.8.
        (fragment_address, "deepspeed.runtime.bf16_optimizer.fragment_address"),
        numpy.ndarray,
        numpy.dtype,
        numpy.dtypes.UInt32DType,
        reconstruct,
        # The name under which numpy 1 wrote the same function.
        (reconstruct, "numpy.core.multiarray._reconstruct"),
    ]


def load_file(path: str | Path, map_location="cpu", mmap: bool = False):
    """Read a .pt file of tensors and plain containers.

    Args: mmap: leave tensors in the file until they are used; it must not be changed meanwhile.
    Raises: CheckpointError naming the file when it is missing, damaged, or holds anything else.
    """
    activity.pulse()
    try:
        with torch.serialization.safe_globals(_allowed()):
            # Only the zip files that torch writes since version 1.6 can be mapped.
            mmap = mmap and zipfile.is_zipfile(path)
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint file {path} is missing") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint file {path} holds more than tensors and is not loaded: {_first_line(error).split('. ')[0]}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"checkpoint file {path} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class SafeCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's checkpoint input and output: loads plain data only; a failed write is kept, not raised, until all
    ranks have left DeepSpeed's collective save, since a rank that raises inside it would leave its peers waiting.

    Attributes: failure: the first failure since `create`; records: {path: manifest record} of the files written since;
    deferred: what a save in the background has yet to write, [(path, state in host memory)]; saving: the save that is
    under way, if any; group: a process group of all ranks on the host.
    """

    def __init__(self, with_optimizer: bool = True, group=None, on_host: bool = True):
        """
        Args:
            with_optimizer: False leaves optimizer states out of all files.
            group: all ranks, on the host.
            on_host: whether an optimizer keeps its states in host memory.
        """
        # The parent only announces itself.
        self.name = "SafeCheckpointEngine"
        self.failure: str | None = None
        self.records: dict[str, dict] = {}
        self.deferred: list[tuple[str, Any]] | None = None
        self.saving: Any = None
        self.host_memory = HostMemory()
        self.group, self._with_optimizer, self._on_host = group, with_optimizer, on_host
        self._read: dict[str, Any] | None = None

    def begin(self, deferred: bool) -> None:
        """A checkpoint begins; `deferred`: its files are only copied, for `write_deferred`."""
        self.failure, self.records = None, {}
        self.deferred = [] if deferred else None

    def create(self, info) -> None:
        """DeepSpeed's own start of a checkpoint, which comes after `begin`."""

    def preserves_storage_sharing(self) -> bool:
        """Whether parts of larger tensors must be cloned before `save`; a snapshot takes the parts only."""
        return self.deferred is None

    def makedirs(self, path, exist_ok=False) -> None:
        with self.keep_failure(path):
            Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def save(self, state_dict, path: str) -> None:
        """Write a file, or copy its content for later. After a failure nothing more is tried."""
        if not self._with_optimizer:
            state_dict = without_optimizer(state_dict)
        if self.failure is not None or state_dict is None:
            return
        if self.deferred is None:
            self._write(state_dict, path)
        else:
            self.deferred.append((path, snapshot(state_dict, self.host_memory)))

    def write_deferred(self) -> None:
        """Write what has been copied; from a thread that may run beside the training."""
        for path, state in self.deferred or []:
            if self.failure is None:
                self._write(state, path)
        self.deferred = None

    def _write(self, state, path: str) -> None:
        with self.keep_failure(path):
            self.records[path] = retried(lambda: write_tensors(state, path))

    def load(self, path: str, map_location=None):
        """Read a file, once within `reading`: DeepSpeed asks twice for the weights.

        Whatever is copied anyway is copied straight out of the page cache. On the host an optimizer takes tensors as
        they are, which must not be views of the file: as long as those were in use, deleting the checkpoint would not
        make room on the disk.
        """
        if self._read is not None and path in self._read:
            return self._read[path]
        content = load_file(path, map_location, mmap=True)
        if self._on_host:
            content = snapshot(content, HostMemory(), leave=_COPIED)
        if self._read is not None:
            self._read[path] = content
        return content

    @contextlib.contextmanager
    def reading(self):
        """Files of a checkpoint are read, and not kept afterwards."""
        self._read = {}
        try:
            yield
        finally:
            self._read = None

    @contextlib.contextmanager
    def keep_failure(self, path):
        """Remember the first failure of writing `path`."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            self.failure = self.failure or f"{path}: {_reason(error)}"


def without_optimizer(state: dict) -> dict | None:
    """The content of a file of DeepSpeed's without optimizer states; None if it has nothing else.

    ZeRO-3 keeps the weights in fp32 in its optimizer's files: these stay.
    """
    partitions = state.get("optimizer_state_dict")
    if isinstance(partitions, dict) and "module" not in state:
        if "fp32_flat_groups" not in partitions:
            return None
        kept = {key: value for key, value in partitions.items() if key != "optimizer_state_dict"}
        return {**state, "optimizer_state_dict": kept}
    return {**state, "optimizer": None} if "optimizer" in state else state


def _reason(error: OSError | RuntimeError) -> str:
    """Why a file could not be written."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _first_line(error)

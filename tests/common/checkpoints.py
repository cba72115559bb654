"""What checkpoints hold."""

from pathlib import Path

import torch


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint (a global_step folder), by file and path."""
    from megatron.checkpointing.safe_engine import load_file

    found = {}

    def collect(prefix, value):
        if isinstance(value, torch.Tensor):
            found[prefix] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(f"{prefix}/{key}", item)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                collect(f"{prefix}/{index}", item)

    for path in sorted(folder.glob("*.pt")):
        collect(path.name, load_file(path))
    return found

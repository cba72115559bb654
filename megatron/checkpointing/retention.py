"""Keeping only the newest checkpoints."""

import os
from collections.abc import Callable
from pathlib import Path

from megatron.checkpointing.manifest import read_manifest
from megatron.checkpointing.names import (
    get_checkpoint_tag,
    iteration_of_tag,
    partial_tag,
    read_latest,
    replaced_tag,
    saved_iterations,
)
from megatron.common.console import info, warn
from megatron.common.files import remove


def delete_abandoned_saves(save_dir: str) -> None:
    """Delete what earlier runs left behind when they died while saving or deleting; to be called between two saves."""
    for pattern in (partial_tag("*"), replaced_tag(get_checkpoint_tag("*"))):
        for path in Path(save_dir).glob(pattern):
            remove(path)


def delete_old_checkpoints(
    save_dir: str, n_to_keep: int, uploaded: Callable[[Path], bool] | None = None
) -> None:
    """Delete the oldest complete checkpoints that this program wrote, so that `n_to_keep` of them stay.

    Args: uploaded: whether one lies elsewhere too, without which it is not deleted; None: nothing is uploaded.

    A folder counts only if its base name is exactly a checkpoint's and it has a manifest; a link to one does not. The
    one that `latest` names and later ones, which an earlier run has left, are never deleted.
    """
    directory = Path(save_dir)
    newest = iteration_of_tag(read_latest(directory) or "")
    tags = [
        get_checkpoint_tag(iteration)
        for iteration in saved_iterations(directory)
        if newest is None or iteration <= newest
    ]
    own = [
        tag
        for tag in tags
        if not (directory / tag).is_symlink() and read_manifest(directory / tag) is not None
    ]
    for tag in own[: max(0, len(own) - max(1, n_to_keep))]:
        if uploaded is not None and not uploaded(directory / tag):
            warn(f"{directory / tag} is kept, since it has not been uploaded")
            continue
        try:
            # In one step, since what is left of an interrupted deletion would be half a checkpoint for ever.
            doomed = directory / replaced_tag(tag)
            remove(doomed)
            os.rename(directory / tag, doomed)
            remove(doomed)
        except OSError as error:
            warn(f"{directory / tag} could not be deleted ({error.strerror})")
        else:
            info(f"deleted the old checkpoint {directory / tag}")

"""Saving and loading: DeepSpeed's tree of files, written whole or not at all, verified before it is believed."""

from megatron.checkpointing.checks import check_checkpoint_args
from megatron.checkpointing.forward_pass import check_forward_pass, do_forward_pass
from megatron.checkpointing.load import load_checkpoint
from megatron.checkpointing.names import ensure_directory_exists, get_checkpoint_name, get_checkpoint_tag
from megatron.checkpointing.remote import _upload, multiprocessing_starmap, upload_checkpoint
from megatron.checkpointing.retention import delete_old_checkpoints
from megatron.checkpointing.save import save_checkpoint, save_ds_checkpoint
from megatron.checkpointing.schedule import is_save_iter
from megatron.checkpointing.weights import load_for_inference

__all__ = [
    "_upload",
    "check_checkpoint_args",
    "check_forward_pass",
    "delete_old_checkpoints",
    "do_forward_pass",
    "ensure_directory_exists",
    "get_checkpoint_name",
    "get_checkpoint_tag",
    "is_save_iter",
    "load_checkpoint",
    "load_for_inference",
    "multiprocessing_starmap",
    "save_checkpoint",
    "save_ds_checkpoint",
    "upload_checkpoint",
]

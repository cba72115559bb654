"""Loading from object storage: what is missing on the disk is fetched first, every rank a share of the files."""

from pathlib import Path

import torch

from megatron.checkpointing import manifest
from megatron.checkpointing.names import LATEST, get_checkpoint_tag, saved_iterations
from megatron.checkpointing.remote import SCHEME, RemoteTree
from megatron.common.console import info
from megatron.common.errors import CheckpointError
from megatron.common.files import atomic_write_text


def fetch_checkpoint(neox_args, iteration: int | None) -> None:
    """Make `load` a folder on the disk that holds the wanted checkpoint, if it is an address or the run's own folder
    is empty and its checkpoints lie in `s3_path`. Collective; all ranks are taken to share the folder.

    Raises: CheckpointError on all ranks.
    """
    source = _source(neox_args)
    if source is None:
        return
    address, folder = source
    tree, rank, size = None, torch.distributed.get_rank(), torch.distributed.get_world_size()
    failure, names, tag = None, [], None
    try:
        tree = RemoteTree(address, neox_args.s3_chunk_size)
        tag = get_checkpoint_tag(iteration) if iteration is not None else tree.read(LATEST)
        names = tree.files(tag) if tag else []
        if neox_args.load.startswith(SCHEME) and manifest.MANIFEST not in names:
            failure = f"load: there is no complete checkpoint {tag or ''} in {address}"
        for name in names[rank::size]:
            # The manifest says that all is there; it may arrive at any time, since everything is verified.
            tree.download(f"{tag}/{name}", folder / str(tag) / name)
    except (CheckpointError, OSError) as error:
        failure = str(error)
    failures: list = [None] * size
    torch.distributed.all_gather_object(failures, failure)
    problem = next((found for found in failures if found is not None), None)
    if problem is not None:
        raise CheckpointError(problem)
    if names and rank == 0:
        atomic_write_text(folder / LATEST, str(tag))
        info(f"fetched {address}/{tag} ({len(names)} files) to {folder}")
    torch.distributed.barrier()
    neox_args.load = str(folder)


def _source(neox_args) -> tuple[str, Path] | None:
    """(address, folder on the disk) if something has to be fetched."""
    load, save = neox_args.load, neox_args.save
    if load and load.startswith(SCHEME):
        address = load.rstrip("/")
        return address, Path(save or ".", ".fetched", *address.removeprefix(SCHEME).split("/"))
    if not (neox_args.s3_path and save and load) or Path(load).resolve() != Path(save).resolve():
        return None
    empty = [not Path(load).is_dir() or not saved_iterations(load)]
    # One rank looks, since others may have begun to write when the last one would.
    torch.distributed.broadcast_object_list(empty, src=0)
    base = f"{neox_args.s3_path.rstrip('/')}/{Path(save).resolve().name}"
    return (base, Path(load)) if empty[0] else None

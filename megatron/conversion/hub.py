"""Models of the Hugging Face hub as local folders."""

from pathlib import Path

from megatron.common.console import info
from megatron.common.errors import CheckpointError

_WANTED = ("*.json", "*.safetensors", "*.bin", "*.model", "merges.txt", "*.jinja")


def local_folder(
    name: str, revision: str | None = None, cache_dir: str | None = None, into: str | None = None
) -> Path:
    """A folder as it is, or the folder into which a model of the hub has been fetched.

    Args: name: folder or id (`EleutherAI/pythia-70m`); revision: branch, tag or commit; cache_dir: of huggingface_hub;
    into: folder to fetch into instead.
    Raises: CheckpointError if there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    info(f"fetching {name} ({revision or 'main'}) from the Hugging Face hub")
    try:
        found = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, local_dir=into, allow_patterns=list(_WANTED)
        )
    except Exception as error:  # errors of the network, the hub and its library are of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{name} is no folder, and could not be fetched from the Hugging Face hub: {reason}; name a local folder, "
            "or correct the name and --revision"
        ) from error
    return Path(found)

"""Uploading a folder, such as a converted checkpoint, to the Hugging Face hub."""

from pathlib import Path

from megatron.common.errors import CheckpointError
from megatron.common.optional import require


def upload_to_hub(folder: str | Path, repository: str, branch: str, private: bool = True) -> str:
    """Upload every file of a folder; the repository and the branch are made if they are not there.

    Args: repository: "owner/name"; private: whether a new repository is; an existing one stays as it is.
    Returns: the address of the commit.
    Raises: CheckpointError with the reason, in one line.
    """
    hub = require("huggingface_hub", "hf", "an upload to the Hugging Face hub")
    errors = require("huggingface_hub.errors", "hf", "an upload to the Hugging Face hub")
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is no folder; name the one to upload")
    try:
        interface = hub.HfApi()
        interface.create_repo(repository, private=private, exist_ok=True)
        interface.create_branch(repository, branch=branch, exist_ok=True)
        commit = interface.upload_folder(repo_id=repository, folder_path=folder, revision=branch)
    except errors.LocalTokenNotFoundError as error:
        raise CheckpointError(
            "no token for the Hugging Face hub: run `hf auth login` or set HF_TOKEN"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise CheckpointError(
            f"the Hugging Face hub refuses {folder} as {repository} ({_first_line(error)}); check the name, the "
            "branch, and what the token allows"
        ) from error
    # Of the package behind, whichever that is in this version, and of the system.
    except (errors.HTTPError, OSError) as error:
        raise CheckpointError(
            f"the Hugging Face hub cannot be reached ({_first_line(error)}): nothing is known to have been uploaded; "
            "go online, or unset HF_HUB_OFFLINE, and start again: what is there already is not sent twice"
        ) from error
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

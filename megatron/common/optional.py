"""Optional packages, asked for where they are used."""

import importlib
from types import ModuleType

from megatron.common.errors import MissingPackageError


def require(module: str, extra: str, why: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Args: extra: the extra of setup.py that installs the package; why: what needs it, e.g. "use_wandb".
    Raises: MissingPackageError with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{why} needs the package {module.split('.')[0]!r}: pip install -r requirements/requirements-{extra}.txt"
            f" (import failed with: {error})"
        ) from error

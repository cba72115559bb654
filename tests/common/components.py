"""Components that a test needs and not every machine has: programs, packages, rights.

On a machine of one's own their lack skips the test, with the reason. CI has promised all of them (.ci/run), so there it
fails.
"""

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """End the running test (or fixture, or module) because of what is not there."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must have it (see .ci/run)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def needs_program(*names: str) -> None:
    """Programs that the test starts, looked up on the PATH and among the system administrator's."""
    missing = [name for name in names if find_program(name) is None]
    if missing:
        unavailable(f"not installed: {', '.join(missing)}")


def needs_package(*names: str) -> None:
    """Python packages (by the name they are imported under) that the test uses."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        unavailable(f"Python packages not installed: {', '.join(missing)}")


def find_program(name: str) -> str | None:
    """The program's path; daemons lie in folders that a user's PATH may lack."""
    return shutil.which(
        name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    )

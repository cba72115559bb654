"""Where the processes of a job run and meet, as far as the configuration alone can tell."""

import shlex
from collections.abc import Iterator
from typing import Any

FILTERS = ("include", "exclude")
PORT = ("master_port",)
ARGUMENTS = ("launcher_args",)


def filter_problems(args: Any) -> Iterator[str]:
    """Two filters at once."""
    if args.include and args.exclude:
        yield "include and exclude are both set; use one of them"


def port_problems(args: Any) -> Iterator[str]:
    """No port."""
    if not 1 <= args.master_port <= 65535:
        yield f"master_port={args.master_port} must lie between 1 and 65535"


def argument_problems(args: Any) -> Iterator[str]:
    """A string that is no words of a command line."""
    try:
        shlex.split(args.launcher_args or "")
    except ValueError as error:
        yield f"launcher_args={args.launcher_args!r} cannot be split into words: {error}"

"""Where the processes of a job run and meet, as far as the configuration alone can tell."""

from collections.abc import Iterator
from typing import Any

FILTERS = ("include", "exclude")
PORT = ("master_port",)


def filter_problems(args: Any) -> Iterator[str]:
    """Two filters at once."""
    if args.include and args.exclude:
        yield "include and exclude are both set; use one of them"


def port_problems(args: Any) -> Iterator[str]:
    """No port."""
    if not 1 <= args.master_port <= 65535:
        yield f"master_port={args.master_port} must lie between 1 and 65535"

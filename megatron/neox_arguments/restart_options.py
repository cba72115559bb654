"""Starting a failed job again (megatron/launcher/restarts.py)."""

from collections.abc import Iterator
from typing import Any

KEYS = ("max_restarts", "save", "text_gen_type")


def problems(args: Any) -> Iterator[str]:
    """What keeps a job from being started again."""
    if args.max_restarts and args.save is None:
        yield f"max_restarts={args.max_restarts} needs save: a job that is started again goes on from a checkpoint"
    if args.max_restarts and args.text_gen_type == "interactive":
        yield f"max_restarts={args.max_restarts} is for jobs that nobody talks to; remove it"

"""Rules for where the processes of a job run and meet, and when they are started again."""

import shlex
from collections.abc import Iterator
from typing import Any

from megatron.neox_arguments.steps import Steps

RULES = Steps()
rule = RULES.reading


@rule("include", "exclude")
def _filters(args: Any) -> Iterator[str]:
    if args.include and args.exclude:
        yield "include and exclude are both set; use one of them"


@rule("master_port")
def _port(args: Any) -> Iterator[str]:
    if not 1 <= args.master_port <= 65535:
        yield f"master_port={args.master_port} must lie between 1 and 65535"


@rule("launcher_args")
def _launcher_arguments(args: Any) -> Iterator[str]:
    try:
        shlex.split(args.launcher_args or "")
    except ValueError as error:
        yield f"launcher_args={args.launcher_args!r} cannot be split into words: {error}"


@rule("max_restarts", "save", "text_gen_type")
def _restarts(args: Any) -> Iterator[str]:
    if args.max_restarts and args.save is None:
        yield f"max_restarts={args.max_restarts} needs save: a job that is started again goes on from a checkpoint"
    if args.max_restarts and args.text_gen_type == "interactive":
        yield f"max_restarts={args.max_restarts} is for jobs that nobody talks to; remove it"

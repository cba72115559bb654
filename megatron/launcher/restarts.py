"""Starting a job again that has failed, from its newest checkpoint."""

import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from megatron.common.console import warn
from megatron.common.errors import LaunchError
from megatron.launcher.failures import Outcome
from megatron.launcher.job import Job

_RETURN_SECONDS = 300.0  # for hosts and ports to come back
_RETRY_SECONDS = 10.0


def run_with_restarts(
    job: Job,
    run: Callable[[Job], Outcome],
    check: Callable[[Job], None],
    limit: int,
    save: str | None,
    resuming_arguments: Callable[[], list[str]],
) -> int:
    """Run a job, and start it again at most `limit` times while it fails in a way that another start may mend.

    Two starts in a row that fail and leave no new checkpoint are the end too: they would fail forever.

    Args: run: to the job's end; check: whether it can start, before every restart (it has up to five minutes to come
    true); save: folder of the checkpoints; resuming_arguments: command line that goes on from there, used once the job
    has written a checkpoint.
    Returns: the exit code of the last start.
    Raises: LaunchError if the job's hosts do not come back.
    """
    before, fruitless = newest_checkpoint(save), 0
    original, restarts = before, 0
    while True:
        outcome = run(dataclasses.replace(job, restarts=restarts))
        if not outcome.may_recover or restarts == limit:
            return outcome.code
        now = newest_checkpoint(save)
        fruitless = 0 if now != before else fruitless + 1
        if fruitless == 2:
            warn(
                "max_restarts: two starts in a row have failed without a new checkpoint, so there is no third one"
            )
            return outcome.code
        before, restarts = now, restarts + 1
        if now != original:
            job = dataclasses.replace(job, arguments=tuple(resuming_arguments()))
        where = "as at first" if now == original else f"from the checkpoint of iteration {now}"
        warn(f"restart {restarts} of {limit} (max_restarts), {where}")
        _await(job, check)


def newest_checkpoint(folder: str | None) -> int | None:
    """Iteration of the newest complete checkpoint, as the file `latest` names it."""
    try:
        name = Path(folder or os.devnull, "latest").read_text(encoding="utf-8")
    except OSError:
        return None
    number = re.search(r"[0-9]+$", name.strip())
    return int(number[0]) if number else None


def _await(job: Job, check: Callable[[Job], None]) -> None:
    end = time.monotonic() + _RETURN_SECONDS
    while True:
        try:
            return check(job)
        except LaunchError as problem:
            if time.monotonic() > end:
                raise
            warn(f"waiting to start again: {problem}")
            time.sleep(_RETRY_SECONDS)

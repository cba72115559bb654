"""Run a function on several real processes that form one torch.distributed group.

    def sum_of_ranks(offset):
        value = torch.tensor([torch.distributed.get_rank() + offset])
        torch.distributed.all_reduce(value)
        return value.item()

    def test_all_reduce_sums_over_ranks():
        assert run_distributed(sum_of_ranks, 2, 10) == [21, 21]

The function must be importable (module level of a test module); its arguments and its result are pickled.
Results are returned in rank order. An exception, a crash or a hang of any rank fails the caller.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from pathlib import Path

# Beside the package: what the first optimizer step and the first step of ZeRO 3 import (seconds, on every rank).
PRELOADED = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "numpy",
    "deepspeed",
    "megatron.training",
    "functorch.compile",
)
GRACE_SECONDS = 3.0  # how long the other ranks may still report after the first one has failed
LOG_TAIL_CHARS = 4000


class DistributedTestError(AssertionError):
    """A rank raised, died or hung; the message holds every failed rank's traceback and last output.

    `exceptions` maps the failed ranks to "module.ClassName: message" of what they raised.
    """

    def __init__(self, message, exceptions=None):
        super().__init__(message)
        self.exceptions = exceptions or {}


@dataclass
class _Rank:
    number: int
    process: multiprocessing.Process
    reader: connection.Connection
    log: Path
    outcome: tuple | None = (
        None  # ("ok", pickled result) | ("error", headline, traceback) | ("dead", exit code)
    )


@dataclass
class _Job:
    """What a rank is told to do; pickled as a whole."""

    function: object
    args: tuple
    kwargs: dict
    init: bool
    backend: str
    timeout: float
    environment: dict = field(default_factory=dict)


def has_gpu() -> bool:
    """Whether an NVIDIA device is present; asks the driver's device files, so CUDA is not initialised."""
    return os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def run_distributed(
    function, world_size, *args, timeout=120.0, init=True, backend="gloo", env=None, **kwargs
) -> list:
    """Call `function(*args, **kwargs)` on `world_size` processes and return their results by rank.

    `timeout` (seconds) bounds the whole run. `init=False` leaves torch.distributed uninitialised, with RANK,
    LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set so that the function can do it. `env` adds to or
    overrides the environment of the processes. Raises DistributedTestError.
    """
    job = _Job(function, args, kwargs, init, backend, float(timeout))
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distributed-test-")))
        store = _rendezvous(world_size)
        ranks = []
        stack.callback(_kill_all, ranks)
        for number in range(world_size):
            job.environment = _rank_environment(number, world_size, store.port) | dict(env or {})
            ranks.append(_start_rank(number, job, directory))
        _collect(ranks, time.monotonic() + timeout)
        return _results(ranks, timeout)


def _rendezvous(world_size):
    """The store that the ranks meet at. The parent holds it, so no port is ever lost to another process."""
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False)


def _rank_environment(number: int, world_size: int, port: int) -> dict:
    environment = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # env:// then joins our store instead of starting one
        "OMP_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    if not has_gpu():
        environment["DS_ACCELERATOR"] = "cpu"
    return {key: str(value) for key, value in environment.items()}


def _context():
    """Forkserver with the slow imports done once; spawn beside a GPU, where a fork may meet a live CUDA."""
    if has_gpu():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    overrides = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    before = {key: os.environ.get(key) for key in overrides}
    os.environ.update(overrides)  # libraries read these while the server imports them
    try:
        forkserver.ensure_running()
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
    return context


def _start_rank(number: int, job: _Job, directory: Path) -> _Rank:
    context = _context()
    reader, writer = context.Pipe(duplex=False)
    log = directory / f"rank{number}.log"
    process = context.Process(target=_rank_main, args=(job, writer, str(log)), name=f"rank{number}")
    process.start()
    writer.close()
    return _Rank(number, process, reader, log)


def _rank_main(job: _Job, writer, log: str) -> None:
    os.setsid()  # one group per rank, so that its children (data loaders) die with it
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(job.environment)
    try:
        message = ("ok", pickle.dumps(_call(job)))
    except BaseException as problem:
        headline = f"{type(problem).__module__}.{type(problem).__qualname__}: {problem}"
        message = ("error", headline, traceback.format_exc())
    writer.send(message)
    writer.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of a group whose peers are gone may block or abort; nothing after the report matters.
    os._exit(0)


def _call(job: _Job):
    import datetime

    import torch

    torch.set_num_threads(1)
    if job.init:
        limit = datetime.timedelta(seconds=job.timeout)
        torch.distributed.init_process_group(job.backend, init_method="env://", timeout=limit)
    result = job.function(*job.args, **job.kwargs)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody leaves while a peer still talks to it, or is about to
    return result


def _collect(ranks: list, deadline: float) -> None:
    """Wait until every rank has reported or died, the deadline passed, or a failure's grace time is over."""
    while waiting := [rank for rank in ranks if rank.outcome is None]:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return
        handles = [rank.reader for rank in waiting] + [rank.process.sentinel for rank in waiting]
        connection.wait(handles, timeout=remaining)
        for rank in waiting:
            _poll(rank)
        if any(rank.outcome and rank.outcome[0] != "ok" for rank in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)


def _poll(rank: _Rank) -> None:
    alive = rank.process.is_alive()  # asked first: a report may arrive between the two questions
    try:
        if rank.reader.poll():
            rank.outcome = rank.reader.recv()
            return
    except EOFError:
        rank.process.join(1.0)
        alive = False
    if not alive:
        rank.outcome = ("dead", rank.process.exitcode)


def _results(ranks: list, timeout: float) -> list:
    failed = [rank for rank in ranks if rank.outcome is None or rank.outcome[0] != "ok"]
    if not failed:
        return [pickle.loads(rank.outcome[1]) for rank in ranks]
    # The ranks that raised tell more than those that were only left waiting for them.
    failed.sort(key=lambda rank: rank.outcome is None)
    exceptions = {r.number: r.outcome[1] for r in failed if r.outcome and r.outcome[0] == "error"}
    raise DistributedTestError("\n".join(_describe(rank, timeout) for rank in failed), exceptions)


def _describe(rank: _Rank, timeout: float) -> str:
    if rank.outcome is None:
        what = f"did not finish (limit {timeout:g} s, or another rank failed first)"
    elif rank.outcome[0] == "dead":
        what = f"died with exit code {rank.outcome[1]}"
    else:
        what = f"raised\n{rank.outcome[2]}"
    output = rank.log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if rank.log.exists() else ""
    return f"--- rank {rank.number} {what}" + (
        f"\n--- output of rank {rank.number}\n{output}" if output else ""
    )


def _kill_all(ranks: list) -> None:
    for rank in ranks:
        if rank.process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(rank.process.pid, signal.SIGKILL)
            rank.process.kill()
        rank.process.join(10)
        rank.reader.close()

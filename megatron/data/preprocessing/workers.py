"""Blocks through an encoder, here or in worker processes, in order and with bounded memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from megatron.common.documents import Block
from megatron.common.errors import DataError
from megatron.data.preprocessing.encode import EncodedBlock, EncodeJob, Encoder

# Blocks on their way per worker: enough to keep all busy behind a slow one, few enough to stay small.
BLOCKS_PER_WORKER = 4
THREADS_VARIABLE = "TOKENIZERS_PARALLELISM"
PARENT_DIED = 1

_encoder: Encoder | None = None


def encode_blocks(
    blocks: Iterable[Block], job: EncodeJob, encoder: Encoder, workers: int
) -> Iterator[EncodedBlock]:
    """Encoded blocks in the order of the blocks.

    Args: encoder: the job's encoder in this process, used if there is one worker only.
    Raises: DataError of the first bad block, or if a worker process dies.
    """
    with _single_threaded():
        if workers == 1:
            yield from map(encoder, blocks)
        else:
            yield from _in_processes(blocks, job, workers)


def _in_processes(blocks: Iterable[Block], job: EncodeJob, workers: int) -> Iterator[EncodedBlock]:
    # Started afresh: a fork would copy the locks of threads that libraries may run here.
    context = multiprocessing.get_context("spawn")
    pending: deque[Future] = deque()
    with ProcessPoolExecutor(workers, context, _start_worker, (job,)) as pool:
        try:
            for block in blocks:
                pending.append(pool.submit(_encode, block))
                if len(pending) >= BLOCKS_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a preprocessing worker died without an error of its own, most likely killed for lack of memory: "
                "run again with fewer --workers, what is done is kept"
            ) from error
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Each worker is one thread; without this, every tokenizer would start one for each core."""
    before = os.environ.get(THREADS_VARIABLE)
    os.environ[THREADS_VARIABLE] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(THREADS_VARIABLE, None)
        else:
            os.environ[THREADS_VARIABLE] = before


def _start_worker(job: EncodeJob) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(job)


def _end_with_parent() -> None:
    """A parent killed outright cannot stop its workers: they wait for its end themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(PARENT_DIED)


def _encode(block: Block) -> EncodedBlock:
    assert _encoder is not None, "the worker was not started with a job"
    return _encoder(block)

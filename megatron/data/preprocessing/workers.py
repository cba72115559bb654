"""Blocks through an encoder, here or in worker processes, in order and with bounded memory.

Every worker has a pipe of its own and takes every n-th block. Workers share nothing, neither a lock nor a queue, so one
that dies can neither hang the others nor the parent: its pipe ends.
"""

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from megatron.common.documents import Block
from megatron.common.errors import DataError, NeoXError
from megatron.data.preprocessing.encode import EncodedBlock, EncodeJob, Encoder

# Blocks on their way per worker: enough to keep all busy behind a slow one, few enough to stay small.
BLOCKS_PER_WORKER = 4
THREADS_VARIABLE = "TOKENIZERS_PARALLELISM"


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
    pool = [_Worker(job) for _ in range(workers)]
    busy: deque[_Worker] = deque()
    try:
        for number, block in enumerate(blocks):
            worker = pool[number % workers]
            worker.send(block)
            busy.append(worker)
            del block  # its bytes are the worker's now
            if len(busy) >= BLOCKS_PER_WORKER * workers:
                yield busy.popleft().receive()
        while busy:
            yield busy.popleft().receive()
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, job: EncodeJob):
        # Started afresh: a fork would copy the locks of threads that libraries may run here.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, block: Block) -> None:
        try:
            self._pipe.send(block)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> EncodedBlock:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def _died(self) -> DataError:
        self._process.join(timeout=1.0)
        return DataError(
            f"a preprocessing worker died (exit code {self._process.exitcode}), most likely killed for lack of "
            "memory: run again with fewer --workers, what is done is kept"
        )


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


def _work(pipe: Connection, job: EncodeJob) -> None:
    """A worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    blocks: queue.SimpleQueue[Block] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, blocks), daemon=True).start()
    encoder = Encoder(job)
    while True:
        pipe.send(_answer(encoder, blocks.get()))


def _listen(pipe: Connection, blocks: "queue.SimpleQueue[Block]") -> None:
    """Take blocks whenever they come, so that the parent never waits to send while this worker waits to answer."""
    try:
        while True:
            blocks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone


def _answer(encoder: Encoder, block: Block) -> EncodedBlock | BaseException:
    try:
        return encoder(block)
    except NeoXError as error:
        return error
    except Exception:  # with its traceback, which an exception alone would lose on its way
        return RuntimeError(f"a preprocessing worker failed:\n{traceback.format_exc()}")

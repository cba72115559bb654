"""Start the processes of a job on this machine, watch over them, and leave none behind.

DeepSpeed's own single-machine launcher imports torch twice before the first worker starts; this one imports nothing
heavy and speaks the same protocol: torchrun-style environment variables, --local_rank, and base64 configurations.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from megatron.common.console import print_rank_0, write_errors
from megatron.common.errors import COME_AGAIN, NeoXError
from megatron.launcher.coordinator import Coordinator
from megatron.launcher.failures import Outcome, death, exit_code, report
from megatron.launcher.interrupts import ANNOUNCING, ENDING, Interrupts
from megatron.launcher.job import Job
from megatron.launcher.worker_environment import worker_environment

# Time for other ranks that met the same error to say so.
SETTLE_SECONDS = 1.0
POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


def run_local(job: Job) -> Outcome:
    """Run a local job to its end.

    A worker that fails ends the job: the others are ended too and its error is shown once. So does a stall
    (job.patience). SIGINT, SIGTERM and SIGHUP are passed on, and the workers are given all the time they need to finish
    their step and save; who insists has them killed. SIGUSR1 and SIGUSR2 are passed on, however often they come, and
    again to workers that begin to listen later.

    Returns: code 0; COME_AGAIN if the workers ask for another start; the exit code of the worker that failed first
    (128 + signal for one killed by a signal); or 1 after a stall.
    """
    return _Watch(job).run()


class _Watch:
    """The processes of a running job."""

    def __init__(self, job: Job):
        self._job = job
        self._processes: list[subprocess.Popen] = []
        self._interrupts = Interrupts()
        self._arrived: set[int] = set()
        self._wake_reader, self._wake_writer = os.pipe()
        self._coordinator = Coordinator(job)

    def run(self) -> Outcome:
        """Start all, wait for all."""
        with contextlib.ExitStack() as at_end:
            at_end.callback(self._install_handlers())
            at_end.callback(self._coordinator.close)
            at_end.callback(self._kill_all)
            outcome = self._run()
        # Who interrupts the very end does not want another start either.
        return replace(outcome, may_recover=outcome.may_recover and not self._interrupts.heard)

    def _run(self) -> Outcome:
        for index in range(self._job.size):
            if not self._interrupts.first:
                self._processes.append(self._start(index))
        # From here on all processes hear what comes.
        return Outcome(128 + signal.SIGINT) if self._interrupts.first else self._wait()

    def _start(self, index: int) -> subprocess.Popen:
        environment = worker_environment(self._job, index, os.environ) | self._coordinator.environment()
        command = [sys.executable, "-u", self._job.script, f"--local_rank={index}", *self._job.arguments]
        return subprocess.Popen(
            command,
            env=environment,
            stdin=None if index == 0 else subprocess.DEVNULL,
            # A session of its own: Ctrl-C reaches the launcher alone, which passes it on once.
            start_new_session=True,
            preexec_fn=_prepare(os.getpid()),
        )

    def _wait(self) -> Outcome:
        while True:
            codes = [code for code in self._codes().values() if code is not None]
            if self._coordinator.stall:
                write_errors(f"error: {self._coordinator.stall}\n")
                return Outcome(1, may_recover=True)
            if any(code not in (0, COME_AGAIN) for code in codes) or self._coordinator.failures:
                self._settle()
                # A rank that is stuck within C has ended by itself, and the others are being asked where they are.
                if not self._coordinator.asks:
                    return self._fail()
            if len(codes) == self._job.size:
                return Outcome(max(codes))
            if self._interrupts.insists:
                return Outcome(128 + signal.SIGINT)
            self._acknowledge()
            self._repeat_announcements()
            self._sleep(POLL_SECONDS)

    def _codes(self) -> dict[int, int | None]:
        return {rank: process.poll() for rank, process in enumerate(self._processes)}

    def _fail(self) -> Outcome:
        """End the job and show why.

        The other ranks are not asked politely: none of them can go on without the failed one, and what they have put
        on disk is whole at any moment.
        """
        failures = list(self._coordinator.failures)
        told = {failure.rank for failure in failures}
        codes = {rank: code for rank, code in self._codes().items() if code not in (None, 0, COME_AGAIN)}
        # Killed by nobody we know comes first, whatever the others report about the broken connection.
        silent = [(rank, code) for rank, code in codes.items() if code is not None and rank not in told]
        died = min(silent, key=lambda entry: entry[1], default=None)
        first = died if died and (died[1] < 0 or not failures) else None
        code = exit_code(first[1] if first else 1)
        self._kill_all()
        if not (self._interrupts.first and code in (128 + signal.SIGINT, 128 + signal.SIGTERM)):
            losses = [death(*first)] if first else []
            write_errors(report(failures, losses, self._job.size) + "\n")
        return Outcome(code, may_recover=first is not None or not failures[0].mistake)

    def _settle(self) -> None:
        """Give ranks that met the same error the time to say so. Called when the first failure is seen."""
        self._coordinator.serve(0.0)
        end = time.monotonic() + SETTLE_SECONDS
        while (left := end - time.monotonic()) > 0 and not self._interrupts.insists:
            # The words of a process that has ended are read to the end of its connection.
            told = {failure.rank for failure in self._coordinator.failures}
            present = self._coordinator.present
            if all(
                rank in told or (code is not None and rank not in present)
                for rank, code in self._codes().items()
            ):
                return
            self._sleep(min(left, POLL_SECONDS))

    def _acknowledge(self) -> None:
        if name := self._interrupts.news():
            with contextlib.suppress(NeoXError):
                print_rank_0(f"{name}: waiting for the processes to stop; again to kill them")

    def _repeat_announcements(self) -> None:
        """For workers that were not listening yet; to the others they are nothing new."""
        newcomers = set(self._coordinator.present) - self._arrived
        self._arrived |= newcomers
        for number in dict.fromkeys(self._interrupts.announced):
            for rank in newcomers:
                self._signal(self._processes[rank], number)

    def _sleep(self, seconds: float) -> None:
        """Until a process ends, a signal arrives, or the time is over."""
        if self._coordinator.serve(seconds, self._wake_reader):
            os.read(self._wake_reader, 1024)

    def _install_handlers(self) -> Callable[[], None]:
        os.set_blocking(self._wake_writer, False)
        previous_fd = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._forward) for number in (*ENDING, *ANNOUNCING)}
        # Without a handler of ours SIGCHLD would not write to the wake-up pipe.
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)

        def restore() -> None:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(self._wake_reader)
            os.close(self._wake_writer)

        return restore

    def _forward(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self._job.owns_interrupt:
            self._signal_all(number)
        elif self._interrupts.note(number) or number in ANNOUNCING:
            self._signal_all(signal.SIGTERM if number == signal.SIGHUP else number)

    def _signal_all(self, number: int) -> None:
        for process in self._processes:
            self._signal(process, number)

    def _signal(self, process: subprocess.Popen, number: int) -> None:
        if process.poll() is None:
            process.send_signal(number)

    def _kill_all(self) -> None:
        """Kill what is left, each with the processes it has started."""
        for process in self._processes:
            # A group without living members is unknown, or on macOS forbidden.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()


def _prepare(parent: int) -> Callable[[], None]:
    """A function for a new worker: it dies with us, and an announcement before it listens does not kill it."""
    tie = die_with_parent(parent)

    def prepare() -> None:
        tie()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    return prepare


def die_with_parent(parent: int) -> Callable[[], None]:
    """A function for the new process that ties its life to the launcher's, even if that is killed outright."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def tie() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The launcher may have died between fork and prctl.
        if os.getppid() != parent:
            os._exit(1)

    return tie

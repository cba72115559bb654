"""Jobs on several hosts: the program that starts their processes is started here and waited for."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from megatron.common.console import print_rank_0, write_errors
from megatron.common.errors import COME_AGAIN, NeoXError
from megatron.common.files import remove
from megatron.launcher.coordinator import Coordinator
from megatron.launcher.exports import exports, inherited
from megatron.launcher.failures import Outcome, exit_code, name_ranks, report
from megatron.launcher.interrupts import ANNOUNCING, ENDING, Interrupts
from megatron.launcher.job import PLACED_BY_SCHEDULER, Job
from megatron.launcher.jsrun import jsrun_command
from megatron.launcher.local import POLL_SECONDS, SETTLE_SECONDS, die_with_parent
from megatron.launcher.srun import srun_command

# Where the starter finds this package, from whatever folder the user types.
_PROJECT = Path(__file__).resolve().parents[2]
END_SECONDS = 5.0  # for the ranks, then for the starter, to end by themselves


def run_multi_host(job: Job, extra: Mapping[str, str] | None = None) -> Outcome:
    """Run a job on several hosts to its end.

    A process that fails, dies or is cut off ends the job: its host and rank are named, and the others end themselves
    (megatron/common/lifeline.py). So does a stall (job.patience). SIGINT, SIGTERM or SIGHUP let the processes finish
    their step and save; who insists ends them. SIGUSR1 lets them ask for another start besides.

    Args: extra: further environment variables of the processes.
    Returns: the exit code of the program behind `launcher`, 128 + signal for one killed by a signal; COME_AGAIN if the
    processes ask for another start; 1 for a failure that it did not see.
    Raises: LaunchError for a bad .deepspeed_env.
    """
    given = exports(job) | (extra or {})
    with contextlib.closing(Coordinator(job)) as coordinator:
        given |= coordinator.environment()
        with tempfile.TemporaryDirectory(prefix="neox_hosts_") as folder:
            # A scheduler's own starter carries this whole environment to the hosts.
            environment = {
                **inherited(job),
                **given,
                "PYTHONPATH": f"{_PROJECT}{os.pathsep}{given['PYTHONPATH']}",
            }
            command = starter_command(job, given, Path(folder))
            # Once all ranks are there the starter has read its files: whoever is killed later leaves none behind.
            return _Watch(job, coordinator).run(command, environment, lambda: remove(folder))


def starter_command(job: Job, given: Mapping[str, str], folder: Path) -> list[str]:
    """What to run here so that the job's processes run there.

    DeepSpeed's command lines are made by a process of their own, which then becomes the command: DeepSpeed brings torch
    along, which takes seconds to import.

    Args: given: environment variables of the processes; folder: takes the files that the command line names.
    """
    if job.launcher == "jsrun":
        meeting = {"MASTER_ADDR": job.master_addr, "MASTER_PORT": str(job.master_port)}
        return jsrun_command(job, {**given, **meeting}, os.environ)
    if job.launcher == "slurm":
        return srun_command(job, os.environ)
    request = folder / "job.json"
    request.write_text(json.dumps({"job": asdict(job), "exports": dict(given)}), encoding="utf-8")
    return [sys.executable, "-m", "megatron.launcher.host_commands", str(request)]


class _Watch:
    """The starter's process, and the ranks as the coordinator sees them."""

    _process: subprocess.Popen

    def __init__(self, job: Job, coordinator: Coordinator):
        self._job, self._coordinator = job, coordinator
        self._interrupts = Interrupts()
        self._announced = 0

    def run(
        self, command: list[str], environment: dict[str, str], all_are_here: Callable[[], None]
    ) -> Outcome:
        """Until the starter or the job ends.

        Args: command, environment: of the starter; all_are_here: called once, when every rank has come.
        """
        with contextlib.ExitStack() as at_end:
            at_end.callback(self._install_handlers())
            self._process = subprocess.Popen(
                command,
                env=environment,
                # Ctrl-C reaches us alone, who pass it on.
                start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),
            )
            at_end.callback(self._end_all)
            outcome = self._wait(all_are_here)
        # Who interrupts the very end does not want another start either.
        return replace(outcome, may_recover=outcome.may_recover and not self._interrupts.heard)

    def _wait(self, all_are_here: Callable[[], None]) -> Outcome:
        complete = False
        while self._process.poll() is None and not self._coordinator.in_trouble:
            self._coordinator.serve(POLL_SECONDS)
            if not complete and not self._coordinator.missing:
                complete = True
                all_are_here()
            if not self._pass_on():
                return Outcome(128 + signal.SIGINT)
        self._hear_last_words()
        return self._fail() if self._coordinator.in_trouble else self._end_of_starter()

    def _hear_last_words(self) -> None:
        """What the others have to say about a failure, and the words of those whose starter was faster than they."""
        self._coordinator.serve(SETTLE_SECONDS if self._coordinator.in_trouble else POLL_SECONDS)
        end = time.monotonic() + END_SECONDS
        while self._coordinator.hears and not self._coordinator.in_trouble and time.monotonic() < end:
            self._coordinator.serve(POLL_SECONDS)
        while self._coordinator.asks and not self._coordinator.stall:
            self._coordinator.serve(POLL_SECONDS)

    def _end_of_starter(self) -> Outcome:
        if self._coordinator.comes_again:
            return Outcome(COME_AGAIN)
        code = exit_code(self._process.wait())
        if code == 0 or self._interrupts.heard:
            return Outcome(code)
        hosts = _host_by_rank(self._job)
        missing = [(rank, hosts[rank]) for rank in self._coordinator.missing]
        who = f", and {name_ranks(missing)} did not start" if missing else ""
        write_errors(
            f"error: {self._job.launcher} ended with exit code {code}{who}; its own words stand above\n"
        )
        return Outcome(code, may_recover=True)

    def _fail(self) -> Outcome:
        failures, losses = list(self._coordinator.failures), list(self._coordinator.losses)
        self._end_all()  # Whose last words shall not hide ours.
        stop = self._interrupts.first or (signal.SIGUSR2 in self._interrupts.announced and signal.SIGUSR2)
        if stop:
            return Outcome(128 + stop)
        if losses or failures:
            # What others say about the connection to a rank that has died is no news.
            write_errors(report([] if losses else failures, losses, self._job.size) + "\n")
        else:
            write_errors(f"error: {self._coordinator.stall}\n")
        mistaken = not losses and bool(failures) and failures[0].mistake
        return Outcome(1, may_recover=not mistaken)

    def _end_all(self) -> None:
        """The ranks end themselves, and with them the starter. One that waits for a host which does not answer is
        killed, and so is what it has started here."""
        if self._process.poll() is None:
            self._coordinator.tell_all("end")
        # Schedulers must be told, or they would keep what they have started; mpirun does not take it well.
        asked = (signal.SIGTERM,) if self._job.launcher in PLACED_BY_SCHEDULER else ()
        for number in (None, *asked, signal.SIGKILL):
            # The number of a process that has been waited for may be another one's by now.
            if number is not None and self._process.poll() is None:
                for process in _family(self._process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, number)
            end = time.monotonic() + END_SECONDS
            while self._process.poll() is None and time.monotonic() < end:
                self._coordinator.serve(POLL_SECONDS)
        self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _pass_on(self) -> bool:
        """Tell the ranks of new signals. Returns: whether the job may go on for a while."""
        for number in self._interrupts.announced[self._announced :]:
            self._announced += 1
            self._coordinator.tell_all("later" if number == signal.SIGUSR1 else "stop")
        if self._interrupts.insists:
            return False
        if name := self._interrupts.news():
            if not self._coordinator.present:
                return False
            self._coordinator.tell_all("stop")
            with contextlib.suppress(NeoXError):
                print_rank_0(f"{name}: waiting for the processes to stop; again to end them at once")
        return True

    def _install_handlers(self) -> Callable[[], None]:
        previous = {
            number: signal.signal(number, lambda number, frame: self._interrupts.note(number))
            for number in (*ENDING, *ANNOUNCING)
        }

        def restore() -> None:
            for number, before in previous.items():
                signal.signal(number, before)

        return restore


def _host_by_rank(job: Job) -> list[str]:
    return [host for host, slots in job.hosts.items() for _ in slots]


def _family(pid: int) -> list[int]:
    """A process and those it has started, directly or not."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return []

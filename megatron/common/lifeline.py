"""A worker's connection to the launcher, in a thread of its own: it tells how the work goes and ends the process when
the job is over, whatever has started it and whatever its main thread is stuck in.

Messages (one JSON object a line): to the launcher hello, state, stacks, failure, goodbye; from it welcome, stacks, stop
(finish the step and save), later (the same, and ask for another start), end. A second connection is there for
faulthandler, which writes plain text to it when C code holds Python's lock for as long as the watchdog waits:
no thread could speak then.
"""

import contextlib
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

from megatron.common import activity
from megatron.common.relatives import kill_children, kill_ssh_session
from megatron.common.stacks import all_stacks, waits_in
from megatron.common.wire import LONGEST_LINE, Wire, WireError, keep_alive

PLACES_VARIABLE = "NEOX_LIFELINE"  # HOST:PORT of the launcher, several joined by commas
TOKEN_VARIABLE = "NEOX_LIFELINE_TOKEN"
RESTARTS_VARIABLE = "NEOX_RESTARTS"  # how often the launcher has started this job again
LOST_SECONDS = 20
_CONNECT_SECONDS = 5.0
_RANK_VARIABLES = (
    "RANK",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "SLURM_PROCID",
)
_lifeline: "Lifeline | None" = None


def start() -> None:
    """Connect to the launcher that the environment names, if it does. Call it before anything that takes time."""
    global _lifeline
    # Not for programs that this one starts.
    places, token = os.environ.pop(PLACES_VARIABLE, None), os.environ.pop(TOKEN_VARIABLE, None)
    rank = next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), "0")
    if _lifeline is not None or not places or not token or not rank.isdecimal():
        return
    try:
        _lifeline = Lifeline(places.split(","), token, int(rank))
    except (OSError, WireError) as error:
        if isinstance(error, ConnectionError) or isinstance(error.__cause__, ConnectionError):
            # A process that comes too late for a job that has failed meanwhile.
            sys.stderr.write(
                f"error: rank {rank} on {socket.gethostname()}: nobody listens at {places}: the launcher has gone, or "
                "a firewall on its host rejects connections\n"
            )
            os._exit(1)
        sys.stderr.write(
            f"warning: rank {rank} on {socket.gethostname()} cannot reach the launcher at {places} ({error}): it will "
            "not be ended when others fail; let this host connect to the one where deepy.py runs\n"
        )
        return
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_lifeline.serve, name="lifeline", daemon=True).start()


def restarts_so_far() -> int:
    """How often the launcher has started this job again by itself (max_restarts)."""
    return int(os.environ.get(RESTARTS_VARIABLE, "0"))


def report(message: str, trace: str | None, mistake: bool) -> bool:
    """Tell the launcher why this rank ends. Returns: whether there is a launcher to tell."""
    return _lifeline is not None and _lifeline.say_last(
        {
            "kind": "failure",
            "message": message[-LONGEST_LINE // 8 :],
            "traceback": trace and trace[-LONGEST_LINE // 8 :],
            "mistake": mistake,
        }
    )


def goodbye(status: int) -> None:
    """This rank ends because it wants to."""
    if _lifeline is not None:
        _lifeline.say_last({"kind": "goodbye", "status": status})


class Lifeline:
    """The connection.

    Args: places: HOST:PORT to try in turn; rank: global rank.
    Raises: OSError, WireError if none answers.
    """

    def __init__(self, places: list[str], token: str, rank: int):
        self._rank = rank
        hello = {
            "kind": "hello",
            "token": token,
            "rank": rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._place, connection = _connect(places)
        self._wire = Wire(connection)
        self._wire.send(hello)
        self._trace = _connect([self._place])[1]
        Wire(self._trace).send({**hello, "kind": "trace"})
        self._lock = threading.RLock()  # a signal's handler may say the last word within a message
        self._interval, self._patience = 2.0, 0.0
        self._told: tuple | None = None
        self._said_last = False

    def serve(self) -> None:
        """The thread: answer the launcher and tell what changes, until the process or the job ends."""
        try:
            while True:
                with self._lock:
                    if self._patience and not self._said_last:
                        # Set anew at every turn, so it strikes only if this thread does not get Python's lock for so
                        # long.
                        faulthandler.dump_traceback_later(
                            self._patience, exit=True, file=self._trace.fileno()
                        )
                self._tell_state()
                if select.select([self._wire], [], [], self._interval)[0]:
                    for message in self._wire.messages():
                        self._obey(message)
        except (EOFError, OSError, WireError) as error:
            if not self._said_last:
                is_cut_off = isinstance(error, OSError) and not isinstance(error, ConnectionError)
                self._end(f"lost contact with the launcher at {self._place}: ended", is_cut_off)

    def say_last(self, message: dict[str, Any]) -> bool:
        """Send a message behind which the connection may close. Returns: whether it went out."""
        with self._lock, contextlib.suppress(WireError):
            self._said_last = True
            faulthandler.cancel_dump_traceback_later()
            self._wire.send(message)
            return True
        return False

    def close_in_child(self) -> None:
        """A forked process must not keep its parent's connections open."""
        self._wire.close()
        self._trace.close()

    def _obey(self, message: dict[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "welcome":
            self._interval, self._patience = float(message["interval"]), float(message["patience"])
        elif kind == "stacks":
            self._tell_state(with_stacks=True)
        elif kind in ("stop", "later"):
            os.kill(os.getpid(), signal.SIGTERM if kind == "stop" else signal.SIGUSR1)
        elif kind == "end":
            self._end(None)

    def _tell_state(self, with_stacks: bool = False) -> None:
        now = activity.current()
        state = (now.operation, now.step, now.part, now.beats)
        if self._said_last or (state == self._told and not with_stacks):
            return
        self._told = state
        message: dict[str, Any] = dict(zip(("operation", "step", "part", "beats"), state, strict=True))
        message |= {"kind": "state", "quiet": time.monotonic() - now.since}
        if with_stacks:
            message |= {"kind": "stacks", "stack": all_stacks()[-LONGEST_LINE // 8 :], "waits": waits_in()}
        with self._lock:
            self._wire.send(message)

    def _end(self, reason: str | None, is_cut_off: bool = False) -> None:
        try:
            if reason is not None:
                with contextlib.suppress(OSError):
                    os.write(2, f"error: rank {self._rank} on {socket.gethostname()} {reason}\n".encode())
            kill_children()
            if is_cut_off:
                kill_ssh_session()
        finally:
            # Whatever is wrong with the others, at least this process must not stay.
            os._exit(1)


def _connect(places: list[str]) -> tuple[str, socket.socket]:
    """The first place that answers, and the connection to it."""
    problems: list[OSError] = []
    for place in places:
        host, _, port = place.rpartition(":")
        try:
            connection = socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
        except OSError as error:
            # On the loop of another host than the launcher's nobody listens anyway.
            problems.insert(len(problems) if host.startswith("127.") else 0, error)
            continue
        connection.settimeout(None)
        keep_alive(connection, LOST_SECONDS)
        return place, connection
    raise problems[0]


def _forget() -> None:
    global _lifeline
    if _lifeline is not None:
        _lifeline.close_in_child()
    _lifeline = None

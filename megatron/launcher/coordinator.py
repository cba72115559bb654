"""The launcher's end of all lifelines (megatron/common/lifeline.py): who is there, who has failed, died or been cut
off, and whether anything moves."""

import contextlib
import errno
import hmac
import secrets
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from megatron.common.errors import COME_AGAIN
from megatron.common.files import allow_open_files
from megatron.common.lifeline import LOST_SECONDS, PLACES_VARIABLE, RESTARTS_VARIABLE, TOKEN_VARIABLE
from megatron.common.wire import Wire, WireError, keep_alive
from megatron.launcher.failures import Failure, Loss
from megatron.launcher.job import Job
from megatron.launcher.stalls import Standing, describe

_HELLO_SECONDS = 10.0  # for a connection to say who it is
_ANSWER_SECONDS = 5.0  # for the ranks to tell their stacks
_NONSENSE = "sent something that is no message of this program"
_LONGEST_TRACE = 64 * 1024  # bytes
_TRACE_SECONDS = 1.0  # for the end of a rank's trace, after that of its other connection
_STRANGERS = 64  # connections besides two of every rank
_OWN_FILES = 64  # descriptors for everything that is no connection
_BREATH_SECONDS = 0.1  # between two attempts to accept somebody without a free descriptor
# Rounds: a connection is accepted in one, says who it is in the next, and what it wants in a third.
_OVERTIME = 8


@dataclass
class _Member:
    """A rank. heard: when its count of beats last rose; trace: what faulthandler has written; works: it has not said
    its last word; answered: it has told its stacks; lost: when its connection ended and why, until its trace has ended
    as well and tells more or nothing."""

    rank: int
    host: str
    pid: int
    wire: Wire
    heard: float
    state: dict[str, Any] = field(default_factory=dict)
    trace: bytes = b""
    is_connected: bool = True
    works: bool = True
    answered: bool = False
    lost: tuple[float, str] | None = None


@dataclass
class _Guest:
    """A connection that has not said who it is, or the one for faulthandler of `rank`."""

    wire: Wire
    connection: socket.socket
    since: float
    rank: int | None = None


class Coordinator:
    """Serves only while `serve` is called; keeps what it has learnt.

    Attributes: failures: errors that ranks have told; losses: ranks that went without a word; stall: what to
    say of one that has been found; comes_again: a rank has said that another start goes on (COME_AGAIN).

    Args: job: whose processes they are.
    """

    def __init__(self, job: Job):
        self._size, self._patience, self._restarts = job.size, job.patience, job.restarts
        self._names_hosts = not job.is_local
        self._token = secrets.token_hex(16)
        # The usual thousand is for programs that do not serve thousands of ranks.
        allow_open_files(2 * job.size + _STRANGERS + _OWN_FILES)
        self._listener = socket.create_server(("127.0.0.1" if job.is_local else "", 0), backlog=1024)
        port = self._listener.getsockname()[1]
        addresses = ["127.0.0.1"] if job.is_local else _own_addresses(list(job.hosts))
        self._places = ",".join(f"{address}:{port}" for address in addresses)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._members: dict[int, _Member] = {}
        self._guests: dict[int, _Guest] = {}
        self._asked = 0.0
        self._began = time.monotonic()
        self.failures: list[Failure] = []
        self.losses: list[Loss] = []
        self.stall: str | None = None
        self.comes_again = False

    def environment(self) -> dict[str, str]:
        """The variables that the workers find this by, and a note of the starts before this one."""
        return {
            PLACES_VARIABLE: self._places,
            TOKEN_VARIABLE: self._token,
            RESTARTS_VARIABLE: str(self._restarts),
        }

    @property
    def in_trouble(self) -> bool:
        """Whether the job cannot go on."""
        return bool(self.failures or self.losses or self.stall)

    @property
    def asks(self) -> bool:
        """Whether a stall has been seen and is about to be told, as soon as the ranks have told their stacks."""
        return bool(self._asked)

    @property
    def missing(self) -> list[int]:
        """Ranks that have not come yet."""
        return [rank for rank in range(self._size) if rank not in self._members]

    @property
    def present(self) -> list[int]:
        """Ranks that are connected."""
        return [rank for rank, member in self._members.items() if member.is_connected]

    @property
    def hears(self) -> bool:
        """Whether a rank that has come may still say something, or why it went."""
        return any(member.is_connected or member.lost for member in self._members.values())

    def serve(self, seconds: float, wake: int | None = None) -> bool:
        """Handle what arrives until the time is over, something has gone wrong, or the descriptor `wake` is readable.

        However late it is, what has arrived by then is handled too.
        Returns: whether `wake` is.
        """
        if wake is not None:
            self._selector.register(wake, selectors.EVENT_READ)
        try:
            end, before, overtime = time.monotonic() + seconds, self._troubles(), _OVERTIME
            while True:
                events = self._selector.select(max(0.0, end - time.monotonic()))
                for key, _ in events:
                    # One connection may have closed another of the same round: a rank that goes, that of its trace.
                    if key.fileobj != wake and key.fileobj.fileno() != -1:  # type: ignore[union-attr]
                        self._handle(key)
                self._look_after()
                if any(key.fileobj == wake for key, _ in events):
                    return True
                if self._troubles() != before:
                    return False
                if time.monotonic() >= end:
                    overtime -= 1
                    if not events or not overtime:
                        return False
        finally:
            if wake is not None:
                self._selector.unregister(wake)

    def tell_all(self, kind: str) -> None:
        """Send a message without content to all ranks: stop, or end."""
        for rank in self.present:
            with contextlib.suppress(WireError):
                self._members[rank].wire.send({"kind": kind})

    def close(self) -> None:
        """Close every connection; workers that are still there end themselves."""
        for key in list((self._selector.get_map() or {}).values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _troubles(self) -> tuple[int, int, bool]:
        return len(self.failures), len(self.losses), self.stall is not None

    def _handle(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif isinstance(key.data, _Member):
            self._hear_member(key.data)
        else:
            self._hear_guest(key.data)

    def _accept(self) -> None:
        try:
            connection = self._listener.accept()[0]
        except OSError as error:
            # It has gone already. Or there are no descriptors left, which would be told at once again and again.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_BREATH_SECONDS)
            return
        keep_alive(connection, LOST_SECONDS)
        if len(self._guests) >= 2 * self._size + _STRANGERS:
            connection.close()
            return
        guest = _Guest(Wire(connection), connection, time.monotonic())
        self._guests[connection.fileno()] = guest
        self._selector.register(guest.wire, selectors.EVENT_READ, guest)

    def _hear_guest(self, guest: _Guest) -> None:
        if guest.rank is not None:
            self._hear_trace(guest)
            return
        try:
            messages = guest.wire.messages()
            member = self._admit(guest, messages[0]) if messages else None
        except (EOFError, OSError, WireError, LookupError, TypeError, ValueError):
            self._dismiss(guest)
            return
        if member is not None:
            self._note_all(member, messages[1:])

    def _admit(self, guest: _Guest, hello: dict[str, Any]) -> _Member | None:
        """Returns: the rank whose connection this is, None for that of its trace.

        Raises: WireError for one who is not of this job; LookupError, TypeError, ValueError for a message that makes no
        sense.
        """
        rank, token = hello.get("rank"), str(hello.get("token"))
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise WireError("wrong token")
        if type(rank) is not int or not 0 <= rank < self._size:
            raise WireError("no such rank")
        if hello["kind"] == "trace":
            guest.rank = rank
            return None
        if hello["kind"] != "hello" or rank in self._members:
            raise WireError("there is one already")
        now = time.monotonic()
        member = _Member(rank, str(hello["host"])[:255], int(hello["pid"]), guest.wire, now)
        self._members[rank] = member
        del self._guests[guest.connection.fileno()]
        self._selector.modify(guest.wire, selectors.EVENT_READ, member)
        # Thousands of ranks speak more rarely each.
        interval = max(2.0, self._size / 500)
        if self._patience:
            interval = min(interval, self._patience / 4)
        # One that has gone meanwhile is found out by reading.
        with contextlib.suppress(WireError):
            guest.wire.send({"kind": "welcome", "interval": interval, "patience": self._patience})
        return member

    def _dismiss(self, guest: _Guest) -> None:
        self._guests.pop(guest.connection.fileno(), None)
        self._selector.unregister(guest.wire)
        guest.wire.close()

    def _hear_trace(self, guest: _Guest) -> None:
        member = self._members.get(guest.rank or 0)
        try:
            text = guest.connection.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if not text or member is None or len(member.trace) > _LONGEST_TRACE:
            self._dismiss(guest)
        else:
            member.trace += text

    def _hear_member(self, member: _Member) -> None:
        try:
            messages = member.wire.messages()
        except (EOFError, ConnectionResetError):
            self._lose(
                member,
                f"(process {member.pid}) died without a word: it was killed, perhaps for want of memory",
            )
        except OSError:
            self._lose(member, "is out of reach: its host went down or was cut off from the network")
        except WireError:
            self._lose(member, _NONSENSE)
        else:
            self._note_all(member, messages)

    def _note_all(self, member: _Member, messages: list[dict[str, Any]]) -> None:
        try:
            for message in messages:
                self._note(member, message)
        except (LookupError, TypeError, ValueError):
            self._lose(member, _NONSENSE)

    def _lose(self, member: _Member, reason: str) -> None:
        member.is_connected = False
        self._selector.unregister(member.wire)
        member.wire.close()
        if member.works:
            member.lost = time.monotonic(), reason
            self._judge(member)

    def _judge(self, member: _Member) -> None:
        """Tell a rank that died from one that faulthandler has ended, whose words may come after its end."""
        assert member.lost is not None
        traces = [guest for guest in self._guests.values() if guest.rank == member.rank]
        for guest in traces:
            self._hear_trace(guest)
        since, reason = member.lost
        if member.trace:
            member.lost = None
            self._ask_for_stacks()
        elif not traces or time.monotonic() - since > _TRACE_SECONDS:
            member.lost = None
            if not self.comes_again:
                self.losses.append(Loss(member.rank, self._host(member), reason))

    def _note(self, member: _Member, message: dict[str, Any]) -> None:
        """Raises: LookupError, TypeError, ValueError for a message that makes no sense."""
        kind = message["kind"]
        if kind in ("state", "stacks"):
            if message["beats"] != member.state.get("beats"):
                member.heard = time.monotonic() - float(message["quiet"])
            member.state = message
            member.answered = member.answered or kind == "stacks"
        elif kind == "failure":
            trace = message["traceback"]
            failure = Failure(
                member.rank,
                str(message["message"]),
                None if trace is None else str(trace),
                self._host(member),
                bool(message["mistake"]),
            )
            self.failures.append(failure)
            member.works = False
        elif kind == "goodbye":
            status = int(message["status"])
            member.heard = time.monotonic()
            self.comes_again = self.comes_again or status == COME_AGAIN
            if status not in (0, COME_AGAIN):
                self.losses.append(Loss(member.rank, self._host(member), f"ended with exit code {status}"))
            member.works = False
        else:
            raise ValueError(kind)

    def _host(self, member: _Member) -> str | None:
        return member.host if self._names_hosts else None

    def _look_after(self) -> None:
        """What nobody sends: strangers that say nothing, and ranks that do nothing."""
        now = time.monotonic()
        for guest in list(self._guests.values()):
            if guest.rank is None and now - guest.since > _HELLO_SECONDS:
                self._dismiss(guest)
        for member in self._members.values():
            if member.lost:
                self._judge(member)
        at_work = [member for member in self._members.values() if member.works]
        if not at_work:
            self._asked = 0.0  # There is nobody left to answer.
        if self.stall or not at_work:
            return
        moved = max(member.heard for member in self._members.values())
        frozen = any(member.trace for member in at_work)
        if self._asked:
            if now - moved <= self._patience and not frozen:
                self._asked = 0.0
            elif now > self._asked + _ANSWER_SECONDS or all(
                member.answered or not member.is_connected for member in at_work
            ):
                self._tell_stall(now)
        elif self._patience and now - moved > self._patience:
            self._ask_for_stacks()

    def _ask_for_stacks(self) -> None:
        self._asked = time.monotonic()
        for member in self._members.values():
            member.answered = False
        self.tell_all("stacks")

    def _tell_stall(self, now: float) -> None:
        standings = [self._standing(rank, now) for rank in range(self._size)]
        self.stall = describe([standing for standing in standings if standing], self._patience)

    def _standing(self, rank: int, now: float) -> Standing | None:
        """None for a rank that has done its work."""
        member = self._members.get(rank)
        if member is None:
            return Standing(rank, None, "", None, now - self._began, None, None, has_started=False)
        if not member.works:
            return None
        state = member.state
        operation = ", ".join(part for part in (state.get("operation"), state.get("part")) if part)
        stack = _readable(member.trace) or str(state.get("stack") or "")
        return Standing(
            rank,
            self._host(member),
            operation or "starting",
            state.get("step"),
            now - member.heard,
            stack or None,
            None if member.trace else state.get("waits"),
            is_frozen=bool(member.trace),
        )


def _readable(trace: bytes) -> str:
    """What faulthandler has written, without its heading and the thread of the lifeline."""
    threads = trace.decode(errors="replace").partition("\n")[2].split("\n\n")
    return "\n\n".join(thread for thread in threads if "lifeline.py" not in thread)


def _own_addresses(hosts: list[str]) -> list[str]:
    """Addresses of this machine at which the hosts may find it, the likeliest first."""
    found: dict[str, None] = {}
    for host in [*hosts[:8], socket.gethostname()]:
        # Connecting a datagram socket sends nothing; it asks the routing table.
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.gethostbyname(host), 9))
            found[probe.getsockname()[0]] = None
    # A host that is this machine is found at its own address, or at the loop that no other one sees.
    return sorted(found, key=lambda address: address.startswith("127.")) or ["127.0.0.1"]

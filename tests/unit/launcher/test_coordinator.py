"""The launcher's end of the lifelines: what it learns from connections, good and bad ones."""

import json
import os
import resource
import socket
from contextlib import ExitStack, closing

import pytest

from megatron.common.errors import COME_AGAIN
from megatron.common.lifeline import PLACES_VARIABLE, TOKEN_VARIABLE
from megatron.common.wire import LONGEST_LINE
from megatron.launcher.coordinator import Coordinator
from megatron.launcher.job import Job

TURN = 0.05  # seconds that are enough for what has been sent over the loop
STATE = {"kind": "state", "operation": "training step", "step": 3, "part": "", "beats": 5, "quiet": 0.0}


@pytest.fixture
def make():
    """make(size, patience): a coordinator of a job on several hosts."""
    opened = []

    def new(size: int = 2, patience: float = 0.0) -> Coordinator:
        job = Job("train.py", (), {"localhost": list(range(size))}, False, False, "a", 1, patience=patience)
        opened.append(Coordinator(job))
        return opened[-1]

    yield new
    for coordinator in opened:
        coordinator.close()


def connect(coordinator: Coordinator, *messages: dict | bytes) -> socket.socket:
    """A connection that says these things."""
    port = int(coordinator.environment()[PLACES_VARIABLE].rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    say(coordinator, connection, *messages)
    return connection


def say(coordinator: Coordinator, connection: socket.socket, *messages: dict | bytes) -> None:
    for message in messages:
        connection.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        coordinator.serve(TURN)


def hello(coordinator: Coordinator, rank: int, **changes) -> dict:
    token = coordinator.environment()[TOKEN_VARIABLE]
    return {"kind": "hello", "token": token, "rank": rank, "host": f"node{rank}", "pid": 7, **changes}


def heard(connection: socket.socket) -> list[str]:
    """The kinds of message that have come."""
    return [json.loads(line)["kind"] for line in connection.recv(1 << 16).splitlines()]


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_rank_is_welcome_and_can_be_told_to_end(make):
    coordinator = make()
    with closing(connect(coordinator, hello(coordinator, 1))) as connection:
        assert coordinator.present == [1] and coordinator.missing == [0]
        coordinator.tell_all("end")
        assert heard(connection) == ["welcome", "end"]


@pytest.mark.parametrize(
    "bad",
    [
        {"token": "x"},
        {"rank": 2},
        {"rank": -1},
        {"rank": "0"},
        {"rank": True},
        {"kind": "failure"},
        {"pid": None},
    ],
)
def test_a_stranger_is_shown_the_door_and_nothing_else_happens(make, bad):
    coordinator = make()
    good = connect(coordinator, hello(coordinator, 0))
    with closing(good), closing(connect(coordinator, {**hello(coordinator, 1), **bad})) as stranger:
        assert is_closed(stranger)
        assert coordinator.present == [0] and not coordinator.in_trouble


@pytest.mark.parametrize(
    "text", [b"\x00\xff\n", b"[]\n", b"{}\n", b"GET / HTTP/1.1\r\n", b"[" * 5000 + b"\n"]
)
def test_what_is_no_message_closes_that_connection_only(make, text):
    coordinator = make()
    with closing(connect(coordinator, hello(coordinator, 0))):
        with closing(connect(coordinator, text)) as stranger:
            assert is_closed(stranger)
        assert coordinator.present == [0] and not coordinator.in_trouble


def test_a_line_without_end_is_not_kept(make):
    coordinator = make()
    stranger = connect(coordinator)
    stranger.setblocking(False)
    sent = 0
    with closing(stranger):
        while sent <= 2 * LONGEST_LINE:
            try:
                sent += stranger.send(b"x" * 65536)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            coordinator.serve(0.0)
        assert is_closed(stranger)
    assert not coordinator.in_trouble


def test_a_rank_cannot_be_had_twice(make):
    coordinator = make()
    with closing(connect(coordinator, hello(coordinator, 0))) as first:
        assert is_closed(connect(coordinator, hello(coordinator, 0)))
        assert heard(first) == ["welcome"]


def test_a_rank_that_goes_without_a_word_has_died(make):
    coordinator = make()
    connect(coordinator, hello(coordinator, 1), STATE).close()
    coordinator.serve(TURN)
    (loss,) = coordinator.losses
    assert (loss.rank, loss.host) == (1, "node1") and "(process 7) died without a word" in loss.reason


@pytest.mark.parametrize(("status", "is_loss"), [(0, False), (COME_AGAIN, False), (3, True)])
def test_a_rank_that_says_goodbye_has_not(make, status, is_loss):
    coordinator = make()
    connect(coordinator, hello(coordinator, 1), {"kind": "goodbye", "status": status}).close()
    coordinator.serve(TURN)
    assert bool(coordinator.losses) == is_loss
    assert coordinator.comes_again == (status == COME_AGAIN)


def test_the_error_of_a_rank_arrives_with_its_host(make):
    coordinator = make()
    failure = {"kind": "failure", "message": "no data", "traceback": None, "mistake": True}
    with closing(connect(coordinator, hello(coordinator, 1), failure)) as connection:
        (told,) = coordinator.failures
        assert (told.rank, told.host, told.message, told.mistake) == (1, "node1", "no data", True)
        coordinator.tell_all("end")
        assert heard(connection)[-1] == "end"


def test_a_message_that_makes_no_sense_costs_the_rank_its_place(make):
    coordinator = make()
    with closing(connect(coordinator, hello(coordinator, 1), {"kind": "state"})) as connection:
        assert [loss.rank for loss in coordinator.losses] == [1]
        assert heard(connection) == ["welcome"] and is_closed(connection)


def test_when_nothing_moves_the_ranks_are_asked_for_their_stacks(make):
    coordinator = make(patience=0.2)
    with closing(connect(coordinator, hello(coordinator, 0), {**STATE, "part": "backward"})) as connection:
        while not coordinator.asks:
            coordinator.serve(TURN)
        assert heard(connection) == ["welcome", "stacks"]
        say(coordinator, connection, {**STATE, "kind": "stacks", "stack": "  File x\n", "waits": "barrier"})
    assert "rank 1 does not go on (not started yet)" in coordinator.stall
    assert "rank 0 on node0 waits in barrier" in coordinator.stall


def test_any_progress_of_any_rank_is_progress(make):
    coordinator = make(patience=0.4)
    with closing(connect(coordinator, hello(coordinator, 0))), closing(connect(coordinator)) as other:
        say(coordinator, other, hello(coordinator, 1))
        for beats in range(15):
            say(coordinator, other, {**STATE, "beats": beats})
        assert not coordinator.asks and coordinator.stall is None


def test_what_faulthandler_writes_is_the_stack_of_a_rank_that_can_no_longer_speak(make):
    coordinator = make(size=1, patience=100.0)
    connection = connect(coordinator, hello(coordinator, 0), STATE)
    text = b"Timeout (0:01:40)!\nThread 1 (most recent call first):\n  File held.py\n"
    with closing(connect(coordinator, hello(coordinator, 0, kind="trace"), text)):
        connection.close()
        coordinator.serve(TURN)
    assert "rank 0 on node0 does not go on (iteration 3, training step)" in coordinator.stall
    assert coordinator.stall.endswith("  File held.py")
    assert not coordinator.losses


def test_what_faulthandler_wrote_may_arrive_after_the_end_of_the_rank(make):
    coordinator = make(size=1, patience=100.0)
    connection = connect(coordinator, hello(coordinator, 0), STATE)
    with closing(connect(coordinator, hello(coordinator, 0, kind="trace"))) as trace:
        connection.close()
        coordinator.serve(TURN)
        assert not coordinator.in_trouble and coordinator.hears
        say(coordinator, trace, b"Timeout (0:01:40)!\nThread 1 (most recent call first):\n  File held.py\n")
    assert "rank 0 on node0 does not go on" in coordinator.stall and not coordinator.losses


def test_a_rank_whose_trace_has_nothing_to_say_has_died(make):
    coordinator = make(size=1)
    connection = connect(coordinator, hello(coordinator, 0))
    trace = connect(coordinator, hello(coordinator, 0, kind="trace"))
    connection.close()
    coordinator.serve(TURN)
    trace.close()
    coordinator.serve(TURN)
    assert [loss.rank for loss in coordinator.losses] == [0] and not coordinator.hears


def test_ranks_that_fail_while_they_are_asked_for_their_stacks_are_waited_for_no_longer(make):
    coordinator = make(size=1, patience=0.1)
    with closing(connect(coordinator, hello(coordinator, 0))) as connection:
        while not coordinator.asks:
            coordinator.serve(TURN)
        failure = {"kind": "failure", "message": "timed out", "traceback": None, "mistake": False}
        say(coordinator, connection, failure)
        assert coordinator.failures and not coordinator.asks and coordinator.stall is None


def test_nonsense_right_behind_the_first_word_of_a_rank_is_no_reason_to_forget_the_rank(make):
    coordinator = make()
    both = json.dumps(hello(coordinator, 1)).encode() + b'\n{"kind": "state"}\n'
    with closing(connect(coordinator, both)) as connection:
        assert heard(connection) == ["welcome"] and is_closed(connection)
    assert [loss.rank for loss in coordinator.losses] == [1] and coordinator.present == []


def test_what_has_arrived_is_handled_even_if_there_is_no_time_for_it(make):
    coordinator = make()
    with closing(connect(coordinator)) as connection:
        for message in (hello(coordinator, 1), {"kind": "goodbye", "status": 3}):
            connection.sendall(json.dumps(message).encode() + b"\n")
        coordinator.serve(0.0)
    assert [loss.rank for loss in coordinator.losses] == [1]


def test_the_death_of_a_rank_is_seen_beside_more_than_a_thousand_connections(make):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 1500:
        pytest.skip(f"the hard limit of open files is {limits[1]}")
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        coordinator = make(size=600)  # which allows itself what they need
        for _ in range(1100):
            stack.callback(os.close, os.dup(2))
        rank = connect(coordinator, hello(coordinator, 0))
        trace = stack.enter_context(connect(coordinator, hello(coordinator, 0, kind="trace")))
        assert min(rank.fileno(), trace.fileno()) > 1024
        rank.close()
        trace.close()
        coordinator.serve(TURN)
        assert [loss.rank for loss in coordinator.losses] == [0]


@pytest.mark.parametrize("trace_goes_first", [True, False])
def test_a_rank_and_its_trace_may_go_at_the_same_moment(make, trace_goes_first):
    coordinator = make(size=1)
    ends = [
        connect(coordinator, hello(coordinator, 0)),
        connect(coordinator, hello(coordinator, 0, kind="trace")),
    ]
    for connection in reversed(ends) if trace_goes_first else ends:
        connection.close()
    coordinator.serve(TURN)
    assert [loss.rank for loss in coordinator.losses] == [0] and coordinator.present == []

"""Which signals to the launcher are a wish of their own."""

import signal

import pytest

from megatron.launcher import interrupts
from megatron.launcher.interrupts import Interrupts

HUP, TERM, INT, USR1 = signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


@pytest.mark.parametrize(
    ("numbers", "echo", "insists"),
    [
        ((HUP, HUP), 100.0, False),
        ((TERM, HUP, TERM), 100.0, False),
        ((TERM, TERM), -1.0, True),
        ((TERM, INT), 100.0, True),
        ((INT, INT), 100.0, True),
        ((INT, TERM), 100.0, False),
        ((TERM, USR1, USR1), -1.0, False),
    ],
)
def test_who_says_the_same_in_one_breath_does_not_insist(monkeypatch, numbers, echo, insists):
    monkeypatch.setattr(interrupts, "ECHO_SECONDS", echo)
    heard = Interrupts()
    assert heard.note(numbers[0]) and not any(heard.note(number) for number in numbers[1:])
    assert heard.first == numbers[0] and heard.insists == insists


def test_announcements_are_no_wish_to_end():
    heard = Interrupts()
    assert not heard.note(USR1) and heard.first is None and heard.heard and heard.announced == [USR1]

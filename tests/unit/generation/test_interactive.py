"""The conversation, held on a real (pseudo) terminal."""

import contextlib
import io
import os
import signal
import sys

import pytest

from megatron.generation import interactive
from tests.common.paths import ROOT
from tests.common.terminal import CTRL_C, CTRL_D, UP, Terminal

LABEL = "Context prompt >>> "
PROGRAM = """
import time
from megatron.text_generation_utils import generate_samples_interactive
from tests.unit.generation.toy import SuccessorModel, toy_args

class Slow(SuccessorModel):
    def forward(self, *inputs, **options):
        time.sleep({delay})
        return super().forward(*inputs, **options)
    __call__ = forward

generate_samples_interactive(toy_args(seq_length={length}), Slow(), maximum_tokens={maximum}, prompt_end={end!r})
"""


@pytest.fixture(scope="module")
def conversation():
    """A conversation of such settings, at a prompt. It goes on in the next test unless it has been ended."""
    opened = {}

    def start(delay=0.0, length=16, maximum=3, end="\n"):
        code = PROGRAM.format(delay=delay, length=length, maximum=maximum, end=end)
        if code not in opened or opened[code].process.poll() is not None:
            opened[code] = Terminal([sys.executable, "-c", code], cwd=ROOT)
            opened[code].expect(LABEL)
        return opened[code]

    yield start
    for terminal in opened.values():
        terminal.__exit__(None, None, None)


def test_a_line_can_be_edited_and_called_back(conversation):
    terminal = conversation()
    terminal.type("abx\x7f\n")
    terminal.expect("abcde\r\n")
    terminal.expect(LABEL)
    terminal.type(UP + "\n")
    terminal.expect("abcde\r\n")
    terminal.expect(LABEL)
    assert terminal.process.poll() is None


def test_ctrl_c_stops_the_sample_only(conversation):
    terminal = conversation(delay=0.05, length=2000, maximum=1900)
    terminal.type("a\n")
    terminal.expect("abcdefgh")
    terminal.type(CTRL_C)
    terminal.expect("[stopped]")
    terminal.expect(LABEL)
    terminal.type("k\n")
    terminal.expect("klm")
    terminal.type(CTRL_C)
    terminal.expect(LABEL)
    terminal.type(CTRL_D)
    assert terminal.wait() == 0


def test_ctrl_c_counts_also_while_the_ranks_agree_on_the_one_before(monkeypatch):
    def agree(asked):
        os.kill(os.getpid(), signal.SIGINT)
        return asked

    monkeypatch.setattr(interactive, "broadcast_json", agree)
    with interactive._InterruptFlag() as interrupt:
        assert [interrupt.shared(), interrupt.shared()] == [False, True]


def test_ctrl_c_is_raised_only_while_somebody_types_and_counts_for_the_next_sample_otherwise(monkeypatch):
    def typed(label):
        if not lines:
            for _ in range(2):  # the other one while the first is dealt with
                with contextlib.suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            raise KeyboardInterrupt
        return lines.pop()

    lines: list[str] = []
    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(interactive, "write", lambda text: lines.append("the prompt"))
    with interactive._InterruptFlag() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)  # after a sample that has just ended: it means nothing any more
        assert interactive._read_prompt("\n", interrupt) == "the prompt"
        assert not interrupt.shared()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.shared()


def test_ctrl_c_at_the_prompt_drops_the_line(conversation):
    terminal = conversation()
    terminal.type("zzz" + CTRL_C)
    terminal.expect(LABEL)
    terminal.type("ab\n")
    terminal.expect("abcde\r\n")
    terminal.expect(LABEL)
    assert terminal.process.poll() is None


def test_too_little_room_is_explained_and_the_conversation_goes_on(conversation):
    terminal = conversation()
    terminal.type("a" * 14 + "\n")
    terminal.expect("abc\r\n[seq_length=16 is full]")
    terminal.expect(LABEL)
    terminal.type("a" * 16 + "\n")
    terminal.expect("16 tokens; the model takes 1 to 15")
    terminal.expect(LABEL)
    terminal.type("ab\n")
    terminal.expect("abcde\r\n")
    terminal.expect(LABEL)
    assert terminal.process.poll() is None


def test_prompts_are_continued_until_the_end_of_input(conversation):
    terminal = conversation()
    terminal.type("ab\n")
    terminal.expect("abcde\r\n")
    terminal.expect(LABEL)
    terminal.type("k\n")
    terminal.expect("klmn\r\n")
    terminal.expect(LABEL)
    terminal.type(CTRL_D)
    assert terminal.wait() == 0


def test_a_prompt_may_have_several_lines(conversation):
    terminal = conversation(end="###")
    terminal.type("ab\n")
    terminal.expect("... ")
    terminal.type("cd###\n")
    terminal.expect("ab\r\ncdefg\r\n")
    assert terminal.process.poll() is None


def test_input_that_is_closed_or_no_text_spoils_no_conversation(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), "utf-8", "surrogateescape"))
    quiet = interactive._InterruptFlag()
    assert [interactive._read_prompt("\n", quiet), interactive._read_prompt("\n", quiet)] == ["a\ufffd", None]
    monkeypatch.setattr(sys, "stdin", None)
    interactive._enable_line_editing()
    assert interactive._read_prompt("\n", quiet) is None

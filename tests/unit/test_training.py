"""What a training run tells the scheduler that started it."""

from types import SimpleNamespace

import pytest

from megatron.engine.train_state import TrainState
from megatron.training import exit_code


@pytest.mark.parametrize(
    "save, load, to_be_continued, code",
    [
        ("runs/a", "runs/../runs/a", True, 75),
        ("runs/a", "runs/a", False, 0),
        # Another start would begin anew, and so would the one after it.
        ("runs/a", "runs/b", True, 0),
        ("runs/a", None, True, 0),
        (None, None, True, 0),
    ],
)
def test_another_start_is_asked_for_only_where_it_would_go_on(save, load, to_be_continued, code, capsys):
    state = TrainState(iteration=7, to_be_continued=to_be_continued)
    assert exit_code(SimpleNamespace(save=save, load=load), state) == code
    shown = capsys.readouterr()
    assert ("set save and load to the same folder" in shown.out + shown.err) == (
        to_be_continued and code == 0
    )

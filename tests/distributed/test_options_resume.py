"""Runs with shared layers, with soft prompts and with muP go on in another layout, optimizer included."""

import pytest

from tests.common.distributed import run_distributed
from tests.distributed.test_resume import train_part

SHARED = {"num_unique_layers": 2, "param_sharing_style": "spaced"}
PROMPT = {"soft_prompt_tuning": {"enabled": True, "n_tokens": 3, "init_string": "ab"}}
PLAIN = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
LAYOUTS = {
    "single": (1, {}),
    "pp2": (2, {"pipe_parallel_size": 2}),
    "dp2+zero1": (2, {"zero_optimization": {"stage": 1}}),
}


@pytest.mark.parametrize(
    "options, first, second",
    [
        (SHARED, "pp2", "single"),
        (SHARED, "single", "pp2"),
        ({"pos_emb": "rpe"}, "pp2", "single"),
        (PROMPT, "pp2", "single"),
        (PROMPT, "dp2+zero1", "pp2"),
    ],
)
def test_a_run_goes_on_in_another_layout(options, first, second, tmp_path):
    place = {"save": str(tmp_path), "checkpoint_factor": 1000}
    straight = run_distributed(train_part, 1, {**options, **PLAIN}, 1, 4, False)[0]["losses"]
    size, layout = LAYOUTS[first]
    before = run_distributed(train_part, size, {**options, **PLAIN, **layout, **place}, size, 2, True)[0][
        "losses"
    ]
    size, layout = LAYOUTS[second]
    settings = {**options, **PLAIN, **layout, "load": str(tmp_path)}
    after = run_distributed(train_part, size, settings, size, 4, False)[0]["losses"]
    assert before + after == pytest.approx(straight, rel=1e-4)

"""Scores equal those of lm-evaluation-harness's own Hugging Face model on the exported checkpoint, in every layout."""

import json

import pytest

from tests.common.distributed import run_distributed
from tests.common.evaluation import TASKS, write_tasks, write_tokenizer
from tests.parity.evaluation_worker import SETTINGS, in_layouts, reference

LAYOUTS = {"data": {}, "tensor": {"model_parallel_size": 2}, "pipe": {"pipe_parallel_size": 2}}


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> dict[str, dict]:
    """Results by who has counted: "theirs", "alone" and the layouts of two processes."""
    place = tmp_path_factory.mktemp("evaluation")
    settings = {
        **SETTINGS,
        "vocab_file": str(write_tokenizer(place / "tokenizer")),
        "load": str(place / "model"),
        "eval_tasks": list(TASKS),
        "eval_include_path": str(write_tasks(place / "tasks")),
    }
    config = place / "config.json"
    config.write_text(json.dumps(settings))
    ((theirs, alone),) = run_distributed(
        reference, 1, str(config), settings, str(place / "hf"), init=False, timeout=200
    )
    ranks = run_distributed(in_layouts, 2, str(config), LAYOUTS, init=False, timeout=200)
    assert ranks[0] == ranks[1], "ranks have different results"
    return {"theirs": theirs, "alone": alone, **ranks[0]}


@pytest.mark.parametrize("layout", ["alone", *LAYOUTS])
def test_every_answer_is_that_of_the_harness_own_model(scores, layout):
    theirs, ours = scores["theirs"]["answers"], scores[layout]["answers"]
    for task in ("toy_choice", "toy_perplexity"):
        assert len(ours[task]) == len(theirs[task]) > 5
        for own, other in zip(ours[task], theirs[task], strict=True):
            own, other = (value if isinstance(value, (list, tuple)) else [value] for value in (own, other))
            assert own[0] == pytest.approx(other[0], abs=1e-4)
            assert list(own[1:]) == list(other[1:])
    assert ours["toy_generation"] == theirs["toy_generation"]
    assert len(set(ours["toy_generation"])) > 4


@pytest.mark.parametrize("layout", ["alone", *LAYOUTS])
def test_metrics_and_their_errors_are_those_of_the_harness_own_model(scores, layout):
    for task, metrics in scores["theirs"]["metrics"].items():
        assert scores[layout]["metrics"][task] == pytest.approx(metrics, rel=1e-6, abs=1e-4), task


@pytest.mark.parametrize("layout", LAYOUTS)
def test_drawn_texts_do_not_depend_on_the_layout(scores, layout):
    alone = scores["alone"]["answers"]["toy_drawn"]
    assert scores[layout]["answers"]["toy_drawn"] == alone
    assert len(set(alone)) == len(alone) == 5

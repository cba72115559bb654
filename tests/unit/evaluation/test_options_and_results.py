"""What tasks ask for, what users get."""

import functools
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from megatron.common.errors import ConfigError, MissingPackageError
from megatron.evaluation import harness
from megatron.evaluation.chat import ChatTemplate
from megatron.evaluation.generation_options import read_options
from megatron.evaluation.results import metrics_of, plain, write_results
from megatron.evaluation.worker import cut
from tests.common.evaluation import TASKS, write_tasks, write_tokenizer


def test_a_text_is_cut_at_the_first_of_several_ends():
    assert cut("one two. three\n", ["\n", ".", "two. t"]) == "one "
    assert cut("one", ["\n"]) == "one" == cut("one", [])


@pytest.mark.parametrize(
    "given, drawn",
    [
        ({}, (0.0, 0, 0.0)),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, (0.0, 0, 0.0)),
        ({"do_sample": True}, (1.0, 0, 0.0)),
        ({"temperature": 0.7, "top_p": 0.9, "num_beams": 1}, (0.7, 0, 0.9)),
        ({"do_sample": True, "temperature": 0.0, "top_k": 5}, (0.0, 5, 0.0)),
    ],
)
def test_texts_are_drawn_only_where_a_task_asks_for_it(given, drawn):
    options = read_options(given, 128)
    assert (options["temperature"], options["top_k"], options["top_p"]) == drawn


def test_ends_and_lengths_are_read_under_all_their_names():
    assert read_options({"until": "x"}, 128)["until"] == ["x"]
    asked = {"until": ["x", "y"], "max_new_tokens": 5, "max_tokens": 7}
    assert (read_options(asked, 128)["until"], read_options(asked, 128)["max_gen_toks"]) == (["x", "y"], 5)
    assert read_options({}, 128)["max_gen_toks"] == 128
    assert asked["until"] == ["x", "y"]


def test_an_option_that_would_change_the_texts_is_refused():
    with pytest.raises(
        ConfigError, match="a task sets generation_kwargs num_beams, which cannot be followed"
    ):
        read_options({"num_beams": 4, "repetition_penalty": 1.0}, 128)


RESULTS = {
    "results": {
        "toy": {"acc,none": np.float64(0.5), "em,strict": 1, "acc_stderr,none": "N/A", "alias": "Toy"}
    },
    "config": {"kinds": {"b", "a"}, "function": len},
}


def test_numbers_are_named_by_task_metric_and_filter():
    assert metrics_of(RESULTS) == {"toy_acc": 0.5, "toy_em_strict": 1.0}


def test_results_are_a_json_file_named_by_prefix_and_time(tmp_path):
    path = write_results(plain(RESULTS), "mine", tmp_path)
    assert re.fullmatch(r"mine_eval_results_\d\d-\d\d-\d{4}-\d\d-\d\d-\d\d\.json", path.name)
    assert json.loads(path.read_text())["config"]["kinds"] == ["a", "b"]
    assert write_results(plain(RESULTS), "", tmp_path).name.startswith("eval_results_")


def test_names_and_wildcards_stand_for_tasks_and_unknown_ones_are_told_with_what_is_like_them(
    tmp_path, monkeypatch
):
    # The thousands of tasks that the harness brings along would only be waited for.
    only_own = functools.cache(functools.partial(harness._manager.__wrapped__, include_defaults=False))
    monkeypatch.setattr(harness, "_manager", lambda folders, include_defaults=True: only_own(folders))
    folder = str(write_tasks(tmp_path / "tasks"))
    assert harness.chosen_tasks(["toy_choice"], folder) == ["toy_choice"]
    assert sorted(harness.chosen_tasks(["toy_choice", "toy_*"], [folder])) == sorted(TASKS)
    with pytest.raises(ConfigError) as caught:
        harness.chosen_tasks(["toy_choise", "wholly_different"], folder)
    assert caught.value.problems == [
        "eval_tasks: lm_eval knows no task 'toy_choise'; did you mean toy_choice?",
        "eval_tasks: lm_eval knows no task 'wholly_different'; tasks of your own: set eval_include_path",
    ]


def test_a_folder_of_tasks_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match="eval_include_path=nowhere is no folder"):
        harness.chosen_tasks(["toy_choice"], "nowhere")


def test_without_the_harness_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match=r"eval_tasks needs .*requirements-eval\.txt"):
        harness.require_harness()


def test_conversations_are_rendered_by_the_template_beside_the_tokenizer(tmp_path):
    template = ChatTemplate("HFTokenizer", str(write_tokenizer(tmp_path)))
    messages = [{"role": "user", "content": "Hi"}]
    assert template.render(messages) == "<user>Hi\n<assistant>"
    assert (
        template.render([*messages, {"role": "assistant", "content": "Yo"}], False)
        == "<user>Hi\n<assistant>Yo"
    )


def test_a_tokenizer_without_a_template_is_told(tmp_path):
    vocabulary = write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(
        ConfigError, match="eval_apply_chat_template: HFTokenizer with .* has no chat template"
    ):
        ChatTemplate("HFTokenizer", str(vocabulary))


def test_prompts_make_room_for_what_a_task_asks_for_and_a_user_hears_of_it(capfd):
    from megatron.evaluation.adapter import EvalHarnessAdapter

    adapter = object.__new__(EvalHarnessAdapter)
    adapter.neox_args, adapter._coder = SimpleNamespace(seq_length=8), SimpleNamespace(prefix=7)
    assert adapter._options({"max_gen_toks": 6})["max_gen_toks"] == 6 and not capfd.readouterr().err
    assert adapter._options({"max_gen_toks": 500})["max_gen_toks"] == 4
    assert "500 new tokens, which seq_length=8 cannot hold; its texts end after 4" in capfd.readouterr().err
    prompts = {0: list(range(5)), 1: [], 2: [6]}
    assert adapter._prompts(prompts, 6) == {0: [3, 4], 1: [7], 2: [6]}
    assert "1 of 3 prompts keep their last 2 tokens" in capfd.readouterr().err

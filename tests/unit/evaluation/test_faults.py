"""What is wrong with a task is told in one line, and what is wrong with the model is not blamed on a task."""

from types import SimpleNamespace

import pytest
import torch

from megatron.common.errors import ConfigError, DataError, NeoXError
from megatron.evaluation import harness
from megatron.evaluation.faults import unreadable_files
from megatron.evaluation.generation_options import read_options
from megatron.evaluation.results import check_place
from tests.common.evaluation import write_tasks


def evaluate(folder, task: str) -> dict:
    """Results of a model that gives every answer the same probability and cannot write."""
    from lm_eval.api.model import LM

    class Indifferent(LM):
        model = SimpleNamespace(device=torch.device("cpu"))
        batch_size = 1
        neox_args = SimpleNamespace(
            eval_include_path=str(folder),
            eval_tasks=None,
            eval_limit=2,
            eval_num_fewshot=None,
            eval_log_samples=False,
            eval_apply_chat_template=False,
            all_config={},
        )

        def loglikelihood(self, requests):
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests):
            return [-1.0] * len(requests)

        def generate_until(self, requests):
            read_options({"num_beams": 4}, 16)

    return harness.evaluate_tasks(Indifferent(), [task], None, 0, None, {"model": "indifferent"})


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path / "tasks")


def change(folder, before: str, after: str) -> None:
    file = folder / "toy_choice.yaml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))


@pytest.mark.parametrize(
    "before, after, told",
    [
        ("{{question}}", "{{questoin}}", "toy_choice cannot be evaluated: UndefinedError: 'questoin' is undefined"),
        ("fewshot_split: train", "fewshot_split: trian", "toy_choice cannot be evaluated: KeyError: 'trian'"),
        ("_test.jsonl", "_gone.jsonl", "toy_choice: a data set cannot be read: .*toy_choice_gone.jsonl"),
        ('"{{gold}}"', "!function own.gold", r"evaluated \(.*own.py, line 2\): KeyError: 'golden'"),
    ],
)  # fmt: skip
def test_a_wrong_task_is_named_with_what_is_wrong_about_it(tasks, before, after, told):
    (tasks / "own.py").write_text("def gold(document):\n    return document['golden']\n")
    change(tasks, before, after)
    with pytest.raises(DataError, match=f"^eval_tasks: .*{told}[^\n]*$"):
        evaluate(tasks, "toy_choice")


def test_what_the_model_refuses_is_no_fault_of_the_task(tasks):
    with pytest.raises(ConfigError, match="num_beams"):
        evaluate(tasks, "toy_generation")


def test_results_tell_versions_and_commit_without_an_inventory_of_the_machine(tasks):
    results = evaluate(tasks, "toy_choice")
    assert {"lm_eval_version", "transformers_version", "git_hash"} <= set(results)
    assert "pretty_env_info" not in results


def test_a_task_file_that_is_no_yaml_is_told(tasks):
    assert unreadable_files([str(tasks)]) == []
    change(tasks, "task: ", "task: {")
    (problem,) = unreadable_files([str(tasks)])
    assert (
        problem.startswith(f"eval_include_path: {tasks}/toy_choice.yaml cannot be read: ")
        and "\n" not in problem
    )


def test_a_place_where_results_cannot_be_written_is_told_beforehand(tmp_path):
    check_place("")
    check_place(str(tmp_path / "new" / "mine"))
    (tmp_path / "file").touch()
    with pytest.raises(NeoXError, match="eval_results_prefix: cannot make the folder .*/file "):
        check_place(str(tmp_path / "file" / "mine"))

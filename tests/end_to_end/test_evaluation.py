"""Scores by tasks through the command lines: while a model is trained, and of the checkpoint that it leaves."""

import json

from tests.common.corpus import stdlib_documents, write_jsonl
from tests.common.evaluation import write_tasks, write_tokenizer
from tests.common.runs import run_command, write_config


def test_training_reports_the_scores_that_eval_py_gives_its_checkpoint(tmp_path):
    vocabulary = str(write_tokenizer(tmp_path / "tokenizer"))
    write_jsonl(tmp_path / "corpus.jsonl", stdlib_documents(40))
    run_command(
        [
            "tools/datasets/preprocess_data.py", "--input", "corpus.jsonl", "--output-prefix", "corpus",
            "--tokenizer-type", "HFTokenizer", "--vocab-file", vocabulary, "--append-eod",
        ],
        tmp_path,
    )  # fmt: skip
    settings = {
        "tokenizer_type": "HFTokenizer",
        "vocab_file": vocabulary,
        "data_path": str(tmp_path / "corpus_text_document"),
        "train_iters": 4,
        "lr_decay_iters": 4,
        "eval_interval": 2,
        "eval_iters": 1,
        "num_gpus": 2,
        "save": "saved",
        "load": "saved",
        "checkpoint_factor": 4,
        "log_dir": "logs",
        "eval_include_path": str(write_tasks(tmp_path / "tasks")),
        "eval_apply_chat_template": True,
        "eval_num_fewshot": 1,
    }
    config = write_config(tmp_path, **settings, pipe_parallel_size=2, eval_tasks=["toy_choice"])
    output = run_command(["deepy.py", "train.py", config], tmp_path).stdout
    assert "validation results at iteration 2 | lm_loss value: " in output
    (last,) = (row for row in _rows(tmp_path) if row["iteration"] == 4 and "eval/toy_choice_acc" in row)
    assert last["validation/toy_choice_acc"] == last["eval/toy_choice_acc"]

    config = write_config(tmp_path, **settings, model_parallel_size=2, eval_log_samples=True)
    arguments = ["--eval_tasks", "toy_choice", "toy_generation", "--eval_results_prefix", "mine"]
    output = run_command(["deepy.py", "eval.py", config, *arguments], tmp_path).stdout
    assert "|toy_choice" in output and "|exact_match" in output
    (path,) = tmp_path.glob("mine_eval_results_*.json")
    results = json.loads(path.read_text())
    assert (
        results["config"]["model"] == "neox" and results["config"]["model_args"]["model_parallel_size"] == 2
    )
    scores = results["results"]["toy_choice"]
    assert (scores["acc,none"], scores["acc_norm,none"]) == (
        last["eval/toy_choice_acc"],
        last["eval/toy_choice_acc_norm"],
    )
    assert results["n-shot"]["toy_choice"] == 1
    context = results["samples"]["toy_choice"][0]["arguments"][0][0]
    assert context.startswith("<user>Say ") and context.count("Answer:") == 2
    logged = _rows(tmp_path)[-1]
    assert (logged["iteration"], logged["eval/toy_choice_acc"]) == (4, scores["acc,none"])


def _rows(place) -> list[dict]:
    return [json.loads(line) for line in (place / "logs" / "metrics.jsonl").read_text().splitlines()]

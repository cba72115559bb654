"""muP's own runs, shared layers and soft prompts through the command lines."""

import csv

import pytest
import yaml

from tests.common.runs import prepare_corpus, run_command, write_config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(a folder to run commands in, the prefix of a data set in it)"""
    directory = tmp_path_factory.mktemp("runs")
    return directory, prepare_corpus(directory, documents=20)


def train(place, name: str, **settings) -> str:
    """`deepy.py train.py` to its end, which must have status 0; returns what it printed."""
    directory, data = place
    defaults = {
        "data_path": data, "train_iters": 3, "lr_decay_iters": 3, "eval_iters": 0, "log_interval": 1, "num_gpus": 1,
        "seq_length": 32, "max_position_embeddings": 32,
    }  # fmt: skip
    config = write_config(directory, f"{name}.yml", **defaults | settings)
    return run_command(["deepy.py", "train.py", config], directory).stdout


def test_base_shapes_are_written_then_a_wider_model_trains_and_is_checked(place):
    directory, _ = place
    mup = {"base_shapes_file": str(directory / "shapes")}
    said = train(place, "shapes", save_base_shapes=True, **mup)
    assert "base shapes of width 32 are in" in said and "lm_loss" not in said
    shapes = yaml.safe_load((directory / "shapes.0").read_text())
    assert shapes["2.attention.dense.weight"] == [32, 32] and shapes["0.word_embeddings.weight"][0] is None
    assert "iteration        3/       3" in train(place, "wide", use_mup=True, hidden_size=64, **mup)
    said = train(place, "check", use_mup=True, coord_check=True, **mup)
    assert "lm_loss" not in said
    for name in ("up", "sp"):
        with (directory / f"coord_check_{name}.0.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {int(row["width"]) for row in rows} >= {16, 32, 64, 128}
        assert {row["t"] for row in rows} == {"1", "2", "3", "4"} and {"2", "2.attention"} <= {
            row["module"] for row in rows
        }


def test_a_prompt_is_tuned_for_a_model_with_shared_layers_and_used_to_generate(place):
    directory, _ = place
    shared = {"num_unique_layers": 1, "checkpoint_factor": 3}
    train(place, "base", save=str(directory / "base"), **shared)
    prompt = {"soft_prompt_tuning": {"enabled": True, "num_tokens": 4, "init_string": "a text"}, **shared}
    train(
        place, "tuned", load=str(directory / "base"), finetune=True, save=str(directory / "tuned"), **prompt
    )
    config = write_config(
        directory,
        "generate.yml",
        num_gpus=1,
        seq_length=32,
        max_position_embeddings=32,
        load=str(directory / "tuned"),
        text_gen_type="unconditional",
        num_samples=2,
        maximum_tokens=4,
        sample_output_file=str(directory / "samples.jsonl"),
        **prompt,
    )
    run_command(["deepy.py", "generate.py", config], directory)
    assert len((directory / "samples.jsonl").read_text().splitlines()) == 2

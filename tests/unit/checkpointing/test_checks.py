"""What does not fit is named in the words of the config, the model apart from the layout."""

from types import SimpleNamespace

import pytest

from megatron.checkpointing import manifest, provenance
from megatron.checkpointing.checks import layout_changes, same_grid
from megatron.common.errors import CheckpointError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)


def settings(**changes) -> SimpleNamespace:
    model = dict.fromkeys(
        ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "padded_vocab_size"),
        8,
    )
    layout = {"model_parallel_size": 1, "pipe_parallel_size": 0, "zero_stage": 0, "precision": "fp32"}
    others = {
        "make_vocab_size_divisible_by": 1,
        "tokenizer_type": "x",
        "pos_emb": "learned",
        "load": "there",
        "git_hash": None,
        "no_save_optim": False,
    }
    return SimpleNamespace(**{**model, **layout, **others, **changes})


@pytest.fixture
def saved(tmp_path):
    manifest.write_manifest(tmp_path, {}, provenance.description(settings(), 5))
    return tmp_path


def test_what_was_saved_with_the_same_settings_fits(saved):
    assert layout_changes(settings(), saved) == [] and same_grid(settings(), saved)


@pytest.mark.parametrize(
    ("changes", "found", "grid"),
    [
        ({"precision": "bfloat16"}, ["precision fp32 (now bfloat16)"], True),
        ({"pipe_parallel_size": 1}, ["pipe_parallel_size 0 (now 1)"], True),
        (
            {"model_parallel_size": 2, "padded_vocab_size": 10, "zero_stage": 1},
            ["model_parallel_size 1 (now 2)", "zero_stage 0 (now 1)"],
            False,
        ),
    ],
)
def test_changes_of_the_layout_are_listed(saved, changes, found, grid):
    assert layout_changes(settings(**changes), saved) == found
    assert same_grid(settings(**changes), saved) is grid


def test_a_model_without_a_table_of_positions_may_be_given_longer_texts(saved):
    assert layout_changes(settings(pos_emb="rotary", max_position_embeddings=64), saved) == []
    with pytest.raises(CheckpointError, match="max_position_embeddings is 8 in the checkpoint and 64 in"):
        layout_changes(settings(max_position_embeddings=64), saved)


def test_another_model_is_refused_with_what_differs(saved):
    with pytest.raises(
        CheckpointError, match="of another model: num_layers is 8 in the checkpoint and 9 in the config"
    ):
        layout_changes(settings(num_layers=9), saved)

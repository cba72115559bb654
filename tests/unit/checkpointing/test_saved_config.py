"""A checkpoint of another model is told by its config where its weights have the same shapes."""

import json
from types import SimpleNamespace

import pytest

from megatron.checkpointing.saved_config import check_saved_config
from megatron.common.errors import CheckpointError
from megatron.neox_arguments import NeoXArgs
from tests.unit.neox_arguments.basic import minimal

BASE = minimal(data_path="here", train_iters=400)


@pytest.fixture
def saved(tmp_path):
    values = NeoXArgs.from_dict(BASE).all_config
    (tmp_path / "neox_args.json").write_text(json.dumps(values, default=str))
    return tmp_path


def check(directory, resumes=True, **changes) -> None:
    check_saved_config(NeoXArgs.from_dict({**BASE, **changes}), directory, resumes)


def test_the_same_config_fits_in_silence(saved, capfd):
    check(saved)
    check(saved, attention_config=[[["flash"], "all"]], intermediate_size=4 * minimal()["hidden_size"])
    check(saved, num_kv_heads=4, head_dim=16)
    assert capfd.readouterr().err == ""


def test_a_config_as_it_is_written_which_converted_models_keep_fits_in_silence(tmp_path, capfd):
    kinds = {"attention_config": [[["local", "global"], "all"]]}
    (tmp_path / "neox_args.json").write_text(json.dumps(BASE | kinds))
    check(tmp_path, **kinds)
    assert capfd.readouterr().err == ""
    check(tmp_path, attention_config=[[["local"], "all"]])
    assert "attention_config is " in capfd.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"gpt_j_residual": True},
        {"pos_emb": "rotary"},
        {"no_weight_tying": True},
        {"use_bias_in_mlp": False},
        {"expansion_factor": 2.0},
        {"num_kv_heads": 2},
        {"head_dim": 8},
        {"attention_softmax_scale": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("resumes", [True, False])
def test_another_model_is_refused_whatever_it_is_loaded_for(saved, resumes, changes):
    with pytest.raises(
        CheckpointError, match=r"is of another model: .* in the checkpoint and .* in the config"
    ):
        check(saved, resumes, **changes)


def test_states_of_another_optimizer_are_refused_where_they_are_wanted(saved):
    changes = {"optimizer": {"type": "SGD", "params": {"lr": 1e-3}}}
    with pytest.raises(CheckpointError, match="has the states of optimizer adam, and the config names sgd"):
        check(saved, **changes)
    assert check(saved, resumes=False, **changes) is None
    assert check(saved, optimizer={"type": "AdamW", "params": {}}) is None


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"seed": 7},
            "samples may be seen again or left out: seed is 1234 in the checkpoint and 7 in the config",
        ),
        (
            {"train_micro_batch_size_per_gpu": 16, "train_iters": 100},
            "16 in the config, so that 1600 samples are read in all and not 800: if that takes the data through",
        ),
        ({"sliding_window_width": 4}, "trained with another setting: sliding_window_width is None in"),
        ({"layernorm_epsilon": 0.1}, "trained with another setting: layernorm_epsilon is 1e-05 in"),
    ],
)
def test_what_may_be_meant_is_warned_of(saved, capfd, changes, warning):
    check(saved, **changes)
    (line,) = capfd.readouterr().err.splitlines()
    assert warning in line


def test_a_larger_batch_that_reads_the_same_samples_in_fewer_steps_needs_no_warning(saved, capfd):
    check(saved, train_micro_batch_size_per_gpu=16, train_iters=50)
    assert capfd.readouterr().err == ""


def test_a_prompt_for_a_checkpoint_without_one_is_told_how_to_begin(saved):
    prompt = {"soft_prompt_tuning": {"enabled": True, "n_tokens": 3, "init_string": "ab"}}
    with pytest.raises(CheckpointError, match="set finetune: true"):
        check(saved, **prompt)
    assert check(saved, resumes=False, **prompt) is None
    off = {"soft_prompt_tuning": {**prompt["soft_prompt_tuning"], "enabled": False}}
    assert check(saved, **off) is None


def test_a_checkpoint_without_a_readable_config_is_not_compared(tmp_path):
    assert check_saved_config(SimpleNamespace(), tmp_path, True) is None
    (tmp_path / "neox_args.json").write_text("{")
    assert check_saved_config(SimpleNamespace(), tmp_path, True) is None

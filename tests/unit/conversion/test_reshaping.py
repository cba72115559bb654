"""Which checkpoint a tool takes, and which layouts it can be written for."""

import json

import pytest
import transformers

from megatron.checkpointing.reshape import Task, reshape
from megatron.checkpointing.target_tree import Layout
from megatron.checkpointing.weights import SavedWeights
from megatron.common.errors import CheckpointError, ConfigError
from megatron.conversion.from_hf import import_hf
from megatron.conversion.reshaping import check_layout, described_by, find_checkpoint
from megatron.conversion.to_hf import export_hf
from tests.common.models import model_args
from tests.unit.conversion.models import gpt_neox, same_bits


def test_a_checkpoint_is_found_by_its_own_path_or_by_what_latest_names(tmp_path):
    for name in ("global_step2", "global_step4", "0"):
        (tmp_path / name).mkdir()
    (tmp_path / "0/mp_rank_00_model_states.pt").touch()
    for name in ("global_step4", "0"):
        (tmp_path / "latest").write_text(name)
        assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path / name) == tmp_path / name
    assert find_checkpoint(tmp_path, 2) == tmp_path / "global_step2"
    with pytest.raises(CheckpointError, match="no checkpoint global_step3; iterations that are there: 2, 4"):
        find_checkpoint(tmp_path, 3)
    (tmp_path / "latest").unlink()
    with pytest.raises(CheckpointError, match="no file `latest`.*there: 2, 4"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        find_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("tensor", "pipe", "message"),
    [
        (3, 0, "num_attention_heads=4 must be a multiple of model_parallel_size=3"),
        (8, 0, "num_attention_heads=4 must be a multiple of model_parallel_size=8"),
        (1, 3, "pipe_parallel_size=3 exceeds num_layers=2"),
    ],
)
def test_a_layout_that_no_run_could_have_is_refused_by_the_keys(tmp_path, tensor, pipe, message):
    saved = model_args(num_kv_heads=2, model_parallel_size=2, precision="fp16", fp16_lm_cross_entropy=True)
    (tmp_path / "neox_args.json").write_text(json.dumps(saved.all_config, default=str))
    check_layout(tmp_path, [], Layout(4, 2, 2, 1, "fp32"))
    with pytest.raises(ConfigError, match=message):
        check_layout(tmp_path, [], Layout(1, tensor, pipe, 0, "fp32"))


def test_a_converted_checkpoint_is_described_by_the_config_it_keeps(tmp_path):
    model = gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox", tensor=2)
    directory = find_checkpoint(tmp_path / "neox")
    specs, parallel_residual = described_by(directory, [])
    task = Task(directory, Layout(1, 1, 2, 0, "fp32"), False, specs, parallel_residual)
    there = reshape(task, tmp_path / "there", jobs=1)
    assert (there / "layer_03-model_00-model_states.pt").is_file()
    export_hf(there, [], tmp_path / "back")
    assert same_bits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back"), model)


def test_weights_that_a_config_asks_for_in_vain_are_named(tmp_path):
    gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox")
    with pytest.raises(CheckpointError, match="has no 9.norm.weight: the config describes another model"):
        SavedWeights(tmp_path / "neox/global_step0").part("9.norm.weight", 0)

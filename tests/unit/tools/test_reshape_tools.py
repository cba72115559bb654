"""The tools that write checkpoints anew: GPT-NeoX's trees, and LLaMA's of earlier versions."""

import importlib.util

import pytest
import torch
import yaml

from megatron.checkpointing import manifest
from megatron.checkpointing.source_tree import SourceTree
from megatron.common.errors import CheckpointError
from tests.common.neox.training import Sizes, new_run, train_step
from tests.common.neox.trees import Form, write_tree
from tests.common.paths import ROOT


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "ckpts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def run():
    run = new_run(True, Sizes(hidden=8, heads=2, vocabulary=128))
    for seed in range(3):
        train_step(run, torch.randint(128, (2, 17), generator=torch.Generator().manual_seed(seed)))
    return run


@pytest.fixture
def config(tmp_path, run) -> str:
    values = {
        "num_layers": run.sizes.layers, "hidden_size": 8, "num_attention_heads": 2, "seq_length": run.sizes.length,
        "max_position_embeddings": run.sizes.length, "pos_emb": "rotary", "rotary_pct": 0.5, "no_weight_tying": True,
        "gpt_j_residual": True, "model_parallel_size": 2, "pipe_parallel_size": 2, "fp16": {"enabled": True},
    }  # fmt: skip
    path = tmp_path / "model.yml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def weights(tree: SourceTree) -> dict[str, torch.Tensor]:
    return {name: tree.part(name, "weight", 0) for name in tree.specs}


def test_the_parts_of_a_published_model_are_merged_and_its_biases_summed(tmp_path, run, config):
    form = Form("fp16", zero=1, dp=2, tp=2, pp=2, legacy=True)
    source = write_tree(tmp_path / "in", run, form)
    for path in source.glob("*optim_states.pt"):
        path.unlink()  # the slim download
    (tmp_path / "in" / "20B_tokenizer.json").write_text("{}")
    output = tmp_path / "out"
    tool("merge20b")(["--input_dir", str(tmp_path / "in"), "--output_dir", str(output), "--config", config])
    merged = output / "global_step3"
    assert (output / "latest").read_text() == "global_step3" and manifest.problem(merged) is None
    found = weights(SourceTree(merged, 1))
    assert found.keys() == run.weights.keys()
    for name, value in run.weights.items():
        assert found[name].dtype == torch.float16
        # Two rounded biases are no rounded sum.
        torch.testing.assert_close(found[name], value.half(), rtol=2e-3, atol=1e-4)
    state = torch.load(merged / "mp_rank_00_model_states.pt", weights_only=False)
    assert state["args"]["model_parallel_size"] == 1 and state["optimizer"] == {}
    assert "torch_rng_state" not in state
    written = yaml.safe_load((output / "configs" / "20B.yml").read_text())
    assert (written["model_parallel_size"], written["pipe_parallel_size"]) == (1, 1)
    assert written["vocab_file"] == str(output / "20B_tokenizer.json")


@pytest.mark.parametrize(
    "form", [Form("fp16", zero=1, dp=3, tp=2, pp=2), Form(tp=2), Form("fp16", legacy=True)], ids=str
)
def test_a_tree_of_gpt_neox_is_reshaped_with_its_optimizer(tmp_path, run, config, form):
    write_tree(tmp_path / "in", run, form)
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--config", config, "--jobs", "1"]
    tool("reshape")(
        [*arguments, "--tp", "1", "--pp", "0", "--dp", "2", "--zero-stage", "2", "--precision", "fp32"]
    )
    tree = SourceTree(tmp_path / "out" / "global_step3", 1)
    bound = 1e-8 if form.tp > 1 else 0.0
    for name, value in run.weights.items():
        for kind, expected in (
            ("master", value),
            ("exp_avg", run.exp_avg[name]),
            ("exp_avg_sq", run.exp_avg_sq[name]),
        ):
            torch.testing.assert_close(tree.part(name, kind, 0), expected, rtol=0.0, atol=bound)
        assert torch.equal(tree.part(name, "weight", 0), tree.part(name, "master", 0))
    assert tree.optimizer.stage(0, 0).steps == 3


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="has no file `latest` that names a checkpoint"):
        tool("reshape")([str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="has no checkpoint global_step7"):
        tool("reshape")([str(tmp_path), str(tmp_path / "out"), "--iteration", "7"])

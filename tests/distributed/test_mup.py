"""A run with the maximal update parametrisation is the same in every layout."""

import pytest
import torch
import yaml

from megatron.mup_substitute import make_base_shapes
from tests.common.models import model_args
from tests.distributed.layouts import BASE, train_in_layout

LAYOUTS = {
    "tp2+sp": {"processes": 2, "model_parallel_size": 2, "sequence_parallel": True},
    "pp2+zero1": {"processes": 2, "pipe_parallel_size": 2, "zero_optimization": {"stage": 1}},
    "pp2, stages of other groups": {
        "processes": 2,
        "pipe_parallel_size": 2,
        "pipe_partition_method": "type:EmbeddingPipe|Norm",
        "zero_optimization": {"stage": 1},
    },
}
WIDTH = {"hidden_size": 32, "num_layers": BASE["num_layers"], "num_attention_heads": 4}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("mup") / "shapes"
    found = make_base_shapes(model_args(**{**WIDTH, "hidden_size": 16}))
    path.write_text(yaml.safe_dump({name: list(shape) for name, shape in found.items()}))
    return {"use_mup": True, "base_shapes_file": str(path), "mup_output_temp": 2.0, "mup_attn_temp": 2.0}


@pytest.fixture(scope="module")
def single(settings):
    return train_in_layout(dict(settings), 4)


def test_it_is_another_run_than_without(single):
    assert single["losses"] != train_in_layout({}, 4)["losses"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_are_those_of_one_process(layout, settings, single):
    found = train_in_layout({**settings, **LAYOUTS[layout]}, 4)
    assert found["losses"] == pytest.approx(single["losses"], rel=1e-5)
    assert found["gradients"].keys() == single["gradients"].keys()
    for name, gradient in single["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)

"""Patterns that differ between heads are the same whatever the layout cuts the heads into."""

import pytest

from tests.distributed.layouts import train_in_layout

# Every head and layer has blocks of its own here, and its own slope.
SETTINGS = {
    "attention_config": ["bigbird", "sparse_fixed", "local", "global"],
    "sparsity_config": {
        "block": 4, "different_layout_per_head": True, "num_local_blocks": 2, "num_different_global_patterns": 2,
        "num_random_blocks": 2, "num_sliding_window_blocks": 1,
    },
    "sliding_window_width": 25, "pos_emb": "alibi", "apply_query_key_layer_scaling": True, "num_kv_heads": 2,
}  # fmt: skip
STEPS = 3


@pytest.fixture(scope="module")
def single():
    return train_in_layout(dict(SETTINGS), STEPS)


@pytest.mark.parametrize(
    "layout",
    [
        {"processes": 2, "model_parallel_size": 2, "sequence_parallel": True},
        {"processes": 4, "model_parallel_size": 4, "checkpoint_activations": True},
    ],
)
def test_patterns_of_heads_do_not_depend_on_the_layout(single, layout):
    found = train_in_layout({**SETTINGS, **layout}, STEPS)
    assert found["losses"] == pytest.approx(single["losses"], rel=1e-5)
    for name, gradient in single["gradients"].items():
        error = (found["gradients"][name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-5, f"the gradient of {name} differs by {error:.2e}"

"""FLOPs are counted from the architecture."""

from types import SimpleNamespace

import pytest

from megatron.logging import human_readable_flops
from megatron.logging.flops import hardware_flops_per_iteration, model_flops_per_iteration


@pytest.fixture
def shape():
    return SimpleNamespace(
        hidden_size=768, num_layers=12, seq_length=2048, train_batch_size=4, padded_vocab_size=50304,
        num_attention_heads=12, num_kv_heads=None, head_dim=None, intermediate_size=None, expansion_factor=None,
        mlp_multiple_of=1, ffn_hidden_size=None,
        activation="gelu", bias_gelu_fusion=False, onnx_safe=False, checkpoint_activations=True, world_size=1,
    )  # fmt: skip


def test_operations_per_iteration_have_the_golden_values(shape):
    assert hardware_flops_per_iteration(shape) == pytest.approx(9.939091193856e12)
    assert model_flops_per_iteration(shape) == pytest.approx(7.929046499328e12)


def test_without_recomputation_both_counts_agree(shape):
    shape.checkpoint_activations = False
    assert hardware_flops_per_iteration(shape) == model_flops_per_iteration(shape)


def test_fewer_key_value_heads_cost_less(shape):
    before = model_flops_per_iteration(shape)
    shape.num_kv_heads = 4
    saved = 3 * 2 * 12 * 4 * 2048 * 768 * 2 * (768 - 256)
    assert before - model_flops_per_iteration(shape) == pytest.approx(saved)


def test_readable_form():
    assert human_readable_flops(9.939e12) == "9.9TFLOPS"
    assert human_readable_flops(12.0) == "12.0"

"""The attention layer of every kind: what the config says reaches the scores, and a cache changes nothing."""

import pytest
import torch

from megatron.model.attention import ParallelSelfAttention
from megatron.model.init_functions import init_method_normal
from tests.common.models import model_args

SMALL_BLOCKS = {"block": 2}
LAYERS = {
    "global": {},
    "local, exact": {"attention_config": ["local"] * 2, "sparsity_config": {"window": 3}},
    "local, blocks": {
        "attention_config": ["local"] * 2,
        "sparsity_config": {**SMALL_BLOCKS, "num_local_blocks": 2},
    },
    "sparse_fixed": {
        "attention_config": ["sparse_fixed"] * 2,
        "sparsity_config": {**SMALL_BLOCKS, "num_local_blocks": 2},
    },
    "sparse_variable": {
        "attention_config": ["sparse_variable"] * 2,
        "sparsity_config": {**SMALL_BLOCKS, "local_window_blocks": [1, 2]},
    },
    "bigbird": {
        "attention_config": ["bigbird"] * 2,
        "sparsity_config": {**SMALL_BLOCKS, "different_layout_per_head": True},
    },
    "bslongformer": {"attention_config": ["bslongformer"] * 2, "sparsity_config": SMALL_BLOCKS},
    "window": {"sliding_window_width": 4},
    "alibi": {"pos_emb": "alibi"},
    "alibi, layer scaling": {"pos_emb": "alibi", "apply_query_key_layer_scaling": True},
    "rpe": {"pos_emb": "rpe"},
    "rpe, layer scaling": {"pos_emb": "rpe", "apply_query_key_layer_scaling": True},
}
LENGTH = 17  # longer than the model's seq_length


def layer(**keys) -> ParallelSelfAttention:
    """The third of three layers, always with the same weights."""
    kinds = keys.pop("attention_config", ["global"] * 2)
    args = model_args(**{"pos_emb": "none", "num_layers": 3, "attention_config": [*kinds, kinds[0]], **keys})
    init = init_method_normal(0.4)
    attention = ParallelSelfAttention(args, None, init, init, layer_number=2).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in attention.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return attention


def hidden_states() -> torch.Tensor:
    return torch.randn(LENGTH, 2, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("steps", [[1] * LENGTH, [6, 1, 1, 5, 1, 3]])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_decoding_with_a_cache_equals_one_pass(name, steps, kv_heads):
    attention = layer(num_kv_heads=kv_heads, **LAYERS[name])
    hidden = hidden_states()
    with torch.no_grad():
        whole, _ = attention(hidden)
        attention.use_cache = True
        pieces = [attention(piece)[0] for piece in hidden.split(steps)]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-4, atol=1e-5)


def test_no_two_configs_do_the_same():
    with torch.no_grad():
        outputs = {name: layer(**keys)(hidden_states())[0] for name, keys in LAYERS.items()}
    names = list(outputs)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            assert not torch.allclose(outputs[one], outputs[other], atol=1e-3), (one, other)


def test_layer_scaling_alone_changes_nothing():
    with torch.no_grad():
        plain = layer()(hidden_states())[0]
        scaled = layer(apply_query_key_layer_scaling=True)(hidden_states())[0]
    torch.testing.assert_close(plain, scaled)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_sees_nothing_of_the_future(name):
    attention = layer(**LAYERS[name])
    hidden = hidden_states()
    changed = hidden.clone()
    changed[11:] += 1.0
    with torch.no_grad():
        before, after = attention(hidden)[0], attention(changed)[0]
    assert torch.equal(before[:11], after[:11]) or torch.allclose(before[:11], after[:11], atol=1e-6)
    assert not torch.allclose(before[11:], after[11:], atol=1e-3)

"""What one side cannot express is refused with the key."""

import pytest
import transformers

from megatron.common.errors import ConfigError
from megatron.families import families, family_named
from tests.common.models import model_args

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 44}
LLAMA = {
    "norm": "rmsnorm",
    "activation": "swiglu",
    "ffn_hidden_size": 44,
    "use_bias_in_attn_linear": False,
    "use_bias_in_mlp": False,
}


def read(config) -> dict:
    return family_named(config.model_type).from_hf(config.to_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.StableLmConfig(**SIZES, hidden_dropout=0.1), "hidden_dropout=0.1"),
        (transformers.LlamaConfig(**SIZES, hidden_act="gelu_new"), "gates of 'gelu_new'"),
        (transformers.GPTNeoXConfig(**SIZES, hidden_act="tanh"), "the activation 'tanh'"),
        (transformers.LlamaConfig(**SIZES, rope_theta=1.5), "rope_theta=1.5"),
        # transformers' model passes over it.
        (transformers.LlamaConfig(**SIZES, partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    ],
)
def test_their_config_is_refused_with_the_key(config, message):
    with pytest.raises(ConfigError, match=message):
        read(config)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("neox", {"activation": "swiglu", "ffn_hidden_size": 44}, "activation='swiglu'"),
        ("neox", {"pos_emb": "alibi"}, "pos_emb='alibi'"),
        ("neox", {"gpt_j_residual": True, "gpt_j_tied": True}, "gpt_j_tied=True"),
        ("neox", {"use_qk_layernorm": True}, "use_qk_layernorm=True"),
        ("neox", {"num_kv_heads": 2}, "num_kv_heads=2"),
        ("neox", {"head_dim": 10}, "head_dim=10"),
        ("neox", {"use_bias_in_mlp": False}, "use_bias_in_mlp=False"),
        ("neox", {"use_bias_in_attn_qkv": False}, "use_bias_in_attn_dense=True"),
        ("neox", {"attention_config": ["local", "global"]}, "attention_config with local"),
        ("neox", {"num_unique_layers": 1}, "num_unique_layers=1"),
        ("llama", {**LLAMA, "rotary_pct": 0.34}, "rotary_pct=0.34"),
        ("llama", {**LLAMA, "gpt_j_residual": True}, "gpt_j_residual=True"),
        ("llama", {**LLAMA, "norm": "layernorm"}, "norm='layernorm'"),
        ("llama", {**LLAMA, "sliding_window_width": 4}, "sliding_window_width=4"),
        ("mistral", {**LLAMA, "use_bias_in_attn_linear": True}, "use_bias_in_attn_linear=True"),
        ("mixtral", LLAMA, "moe_num_experts=1"),
        ("stablelm", {**LLAMA, "norm": "layernorm", "gpt_j_residual": True}, "gpt_j_tied=False"),
        (
            "stablelm",
            {**LLAMA, "norm": "layernorm", "use_qk_layernorm": True},
            "use_qk_layernorm with qk_layernorm_per_head=False",
        ),
    ],
)
def test_our_config_is_refused_with_the_key(family, keys, message):
    with pytest.raises(ConfigError, match=f"cannot express .*{message}"):
        family_named(family).to_hf(model_args(**keys), 64)


def test_all_that_cannot_be_expressed_is_named_at_once():
    args = model_args(use_qk_layernorm=True, embedding_layernorm=True, pos_emb="alibi")
    with pytest.raises(ConfigError) as refusal:
        family_named("neox").to_hf(args, 64)
    assert len(refusal.value.problems) == 3


@pytest.mark.parametrize("key", ["use_mup", "isolate_documents"])
def test_training_is_not_architecture_but_the_parametrisation_is(key):
    args = model_args()
    setattr(args, key, True)
    if key == "use_mup":
        with pytest.raises(ConfigError, match="use_mup=True"):
            family_named("neox").to_hf(args, 64)
    else:
        assert family_named("neox").to_hf(args, 64)["vocab_size"] == 64


def test_families_are_found_by_all_their_names():
    assert family_named("neox").model_type == family_named("GPTNeoXForCausalLM").model_type == "gpt_neox"
    assert {family.model_type for family in families()} >= {
        "gpt_neox",
        "llama",
        "mistral",
        "mixtral",
        "stablelm",
    }
    for family in families():
        assert family_named(family.architecture).model_type == family.model_type

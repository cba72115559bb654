"""What the families from GPT-2 to Mamba cannot have, or cannot express, is refused with the key."""

import pytest
import transformers

from megatron.common.errors import ConfigError
from megatron.families import family_named
from tests.common.models import model_args

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WINDOWS = {
    "attention_config": ["global", "local"],
    "attention_softmax_scale": 1.0,
    "pos_emb": "learned",
    "use_bias_in_attn_qkv": False,
}
MAMBA = {
    "attention_config": ["mamba", "mamba"],
    "norm": "rmsnorm",
    "pos_emb": "none",
    "hidden_size": 32,
    "intermediate_size": None,
}
FALCON = {"use_bias_in_attn_linear": False, "use_bias_in_mlp": False, "hidden_size": 32}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            transformers.GPT2Config(scale_attn_by_inverse_layer_idx=True),
            "scale_attn_by_inverse_layer_idx=True",
        ),
        (transformers.GPT2Config(activation_function="tanh"), "the activation 'tanh'"),
        (transformers.GPTJConfig(**SIZES, rotary_dim=12), "rotary_dim=12.*of a head, 8"),
        (
            transformers.GPTJConfig(**SIZES, rotary_dim=4, tie_word_embeddings=True),
            "tie_word_embeddings=True",
        ),
        (transformers.OPTConfig(layerdrop=0.1), "layerdrop=0.1"),
        (transformers.OPTConfig(_remove_final_layer_norm=True), "_remove_final_layer_norm=True"),
        (
            transformers.BloomConfig(apply_residual_connection_post_layernorm=True),
            "apply_residual_connection_post_layernorm=True",
        ),
        (transformers.BloomConfig(slow_but_exact=True, pretraining_tp=2), "slow_but_exact=True"),
        (transformers.FalconConfig(alibi=True), "alibi=True.*rounded to bfloat16"),
        (transformers.FalconConfig(num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn=2"),
        (
            transformers.FalconConfig(new_decoder_architecture=True, parallel_attn=False),
            "parallel_attn=False with new_decoder_architecture=True",
        ),
        (transformers.MambaConfig(state_size=8), "state_size=8 cannot be had here, only 16"),
        (transformers.MambaConfig(use_bias=True), "use_bias=True"),
        (transformers.MambaConfig(time_step_rank=5), "time_step_rank=5"),
    ],
)
def test_their_config_is_refused_with_the_key(config, message):
    with pytest.raises(ConfigError, match=message):
        family_named(config.model_type).from_hf(config.to_dict())


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("gpt2", {"pos_emb": "rotary"}, "pos_emb='rotary'"),
        ("gpt2", {"attention_softmax_scale": 0.5}, "attention_softmax_scale=0.5"),
        ("gpt2", {"use_bias_in_attn_linear": False}, "attention without biases"),
        ("gptj", {"use_bias_in_output": False}, "use_bias_in_output=False"),
        ("gptj", {"rotary_emb_base": 500}, "rotary_emb_base=500"),
        (
            "gpt_neo",
            {**WINDOWS, "sparsity_config": {"num_local_blocks": 1}},
            "sparsity_config without window",
        ),
        ("gpt_neo", {**WINDOWS, "attention_config": ["global", "bigbird"]}, "attention_config with bigbird"),
        ("opt", {"opt_pos_emb_offset": 0}, "opt_pos_emb_offset=0"),
        ("opt", {"layernorm_epsilon": 1e-3}, "layernorm_epsilon=0.001"),
        ("opt", {"use_bias_in_mlp": False}, "use_bias_in_mlp=False"),
        ("bloom", {"ffn_hidden_size": 44}, "an MLP 44 wide"),
        ("bloom", {"apply_query_key_layer_scaling": True}, "apply_query_key_layer_scaling=True"),
        (
            "falcon",
            {**FALCON, "pos_emb": "rotary", "num_kv_heads": 2},
            "num_kv_heads=2 without gpt_j_residual",
        ),
        ("falcon", {**FALCON, "pos_emb": "rotary", "rotary_pct": 0.5}, "rotary_pct=0.5"),
        ("falcon", {**FALCON, "pos_emb": "alibi"}, "pos_emb='alibi'"),
        ("mamba", {**MAMBA, "mamba_use_bias_in_linears": True}, "mamba_use_bias_in_linears=True"),
        ("mamba", {**MAMBA, "intermediate_size": 48}, "mamba blocks of 48 channels"),
        ("mamba", {**MAMBA, "attention_config": ["mamba", "global"]}, "other layers than mamba"),
    ],
)
def test_our_config_is_refused_with_the_key(family, keys, message):
    with pytest.raises(ConfigError, match=f"cannot express .*{message}"):
        family_named(family).to_hf(model_args(**keys), 64)


def test_dropout_that_differs_from_theirs_is_said(capsys):
    keys = family_named("gpt2").from_hf(transformers.GPT2Config(resid_pdrop=0.1, embd_pdrop=0.2).to_dict())
    assert keys["hidden_dropout"] == 0.1
    captured = capsys.readouterr()
    assert "resid_pdrop" in captured.out + captured.err

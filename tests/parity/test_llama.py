"""Logits equal Hugging Face's LlamaForCausalLM, with every rope scaling, below and beyond the original length."""

import pytest
import torch
import transformers

from megatron.model import build_sequential
from tests.common.models import model_args, randomize
from tests.parity.logits import assert_same_logits, give_weights

ORIGINAL, LENGTH = 16, 24
FACTORS = {"short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [1.0, 2.0, 3.0, 4.0]}
SCALINGS = {
    "none": None,
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {**FACTORS, "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
}
NAMES = {
    "attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.linear2.weight": "mlp.down_proj.weight",
    "input_layernorm.scale": "input_layernorm.weight",
    "post_attention_layernorm.scale": "post_attention_layernorm.weight",
}
OUTSIDE = {
    "word_embeddings.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "final_linear.weight": "lm_head.weight",
}


def hugging_face_weights(model) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in model.sequential.state_dict().items():
        index, path = name.split(".", 1)
        block = f"model.layers.{int(index) - 2}"
        if path == "attention.query_key_value.weight":
            for letter, part in zip("qkv", value.split((32, 16, 16)), strict=True):
                weights[f"{block}.self_attn.{letter}_proj.weight"] = part
        elif path == "mlp.linear1.weight":
            weights[f"{block}.mlp.up_proj.weight"], weights[f"{block}.mlp.gate_proj.weight"] = value.chunk(2)
        else:
            weights[OUTSIDE[path] if path in OUTSIDE else f"{block}.{NAMES[path]}"] = value
    return weights


def pair(kind: str):
    """(our model, transformers' with the same weights)."""
    scaling = SCALINGS[kind]
    ours = scaling and {"rope_type": kind, **scaling}
    if kind == "dynamic":  # transformers takes max_position_embeddings for the length before scaling
        ours["original_max_position_embeddings"] = ORIGINAL
    args = model_args(
        hidden_size=32,
        num_kv_heads=2,
        seq_length=LENGTH,
        max_position_embeddings=4 * ORIGINAL,
        norm="rmsnorm",
        activation="swiglu",
        ffn_hidden_size=44,
        use_bias_in_mlp=False,
        use_bias_in_attn_linear=False,
        rope_scaling=ours,
    )
    model = build_sequential(args).eval()
    randomize(model)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=ORIGINAL if kind == "dynamic" else 4 * ORIGINAL,
        rms_norm_eps=args.rms_norm_epsilon,
        rope_parameters={
            "rope_type": kind if scaling else "default",
            "rope_theta": 10000.0,
            **(scaling or {}),
        },
    )
    return model, give_weights(transformers.LlamaForCausalLM(config), hugging_face_weights(model))


@pytest.mark.parametrize("kind", SCALINGS)
@torch.no_grad()
def test_logits_equal(kind):
    model, reference = pair(kind)
    for length in (LENGTH, ORIGINAL - 4):
        assert_same_logits(model, reference, length=length)


@pytest.mark.parametrize("kind", ["none", "linear", "dynamic", "yarn", "llama3"])
@torch.no_grad()
def test_cached_decoding_beyond_the_original_length_is_that_of_transformers(kind):
    model, reference = pair(kind)
    tokens = torch.randint(0, 64, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(LENGTH)[None]
    model.inference_mode(use_cache=True)
    cache = transformers.DynamicCache()
    ends = [0, ORIGINAL - 4, *range(ORIGINAL - 3, LENGTH + 1)]
    for start, end in zip(ends, ends[1:], strict=False):
        found = model((tokens[:, start:end], positions[:, start:end]))
        expected = reference(
            tokens[:, start:end], past_key_values=cache, use_cache=True, position_ids=positions[:, start:end]
        ).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

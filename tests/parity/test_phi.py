"""Logits equal Hugging Face's PhiForCausalLM: one norm for both branches, partly turned heads, a biased output."""

import torch
import transformers

from megatron.model import build_sequential
from tests.common.models import model_args, randomize
from tests.parity.logits import assert_same_logits, give_weights

NAMES = {
    "attention.dense": "self_attn.dense",
    "mlp.linear1": "mlp.fc1",
    "mlp.linear2": "mlp.fc2",
    "input_layernorm": "input_layernorm",
}
OUTSIDE = {
    "word_embeddings": "model.embed_tokens",
    "norm": "model.final_layernorm",
    "final_linear": "lm_head",
}


def hugging_face_weights(model) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in model.sequential.state_dict().items():
        index, path = name.split(".", 1)
        stem, kind = path.rsplit(".", 1)
        block = f"model.layers.{int(index) - 2}"
        if stem == "attention.query_key_value":
            for letter, part in zip("qkv", value.unflatten(0, (4, 3, -1)).unbind(1), strict=True):
                weights[f"{block}.self_attn.{letter}_proj.{kind}"] = part.flatten(0, 1)
        elif stem in NAMES:
            weights[f"{block}.{NAMES[stem]}.{kind}"] = value
        elif stem in OUTSIDE:
            weights[f"{OUTSIDE[stem]}.{kind}"] = value
        else:
            assert stem == "post_attention_layernorm"  # unused with gpt_j_tied
    return weights


@torch.no_grad()
def test_logits_equal():
    args = model_args(
        hidden_size=32,
        gpt_j_residual=True,
        gpt_j_tied=True,
        rotary_pct=0.5,
        bias_gelu_fusion=True,
        use_bias_in_output=True,
    )
    model = build_sequential(args).eval()
    randomize(model)
    config = transformers.PhiConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    assert_same_logits(model, give_weights(transformers.PhiForCausalLM(config), hugging_face_weights(model)))

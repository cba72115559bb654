"""Logits equal Hugging Face's OPTForCausalLM, with the norms before the branches (OPT) or behind (OPT-350M)."""

import pytest
import torch
import transformers

from megatron.model import build_sequential
from tests.common.models import model_args, randomize
from tests.parity.logits import assert_same_logits

NAMES = {
    "attention.dense": "self_attn.out_proj",
    "mlp.linear1": "fc1",
    "mlp.linear2": "fc2",
    "input_layernorm": "self_attn_layer_norm",
    "post_attention_layernorm": "final_layer_norm",
}
OUTSIDE = {"project_in": "project_in", "project_out": "project_out", "norm": "final_layer_norm"}


def hugging_face_weights(model, args) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in model.sequential.state_dict().items():
        index, path = name.split(".", 1)
        stem, kind = path.rsplit(".", 1)
        block = f"model.decoder.layers.{int(index) - 2}"
        if stem == "attention.query_key_value":
            parts = value.unflatten(0, (args.num_attention_heads, 3, -1)).unbind(1)
            for letter, part in zip("qkv", parts, strict=True):
                weights[f"{block}.self_attn.{letter}_proj.{kind}"] = part.flatten(0, 1)
        elif stem in NAMES:
            weights[f"{block}.{NAMES[stem]}.{kind}"] = value
        elif stem == "word_embeddings":
            weights["model.decoder.embed_tokens.weight"] = weights["lm_head.weight"] = value
        elif stem == "position_embeddings":
            weights["model.decoder.embed_positions.weight"] = value
        else:
            weights[f"model.decoder.{OUTSIDE[stem]}.{kind}"] = value
    return weights


@pytest.mark.parametrize("behind", [False, True])
@torch.no_grad()
def test_logits_equal(behind):
    keys = {"norm_placement": "post", "embedding_size": 12} if behind else {}
    args = model_args(
        seq_length=12,
        max_position_embeddings=14,
        opt_pos_emb_offset=2,
        pos_emb="learned",
        activation="relu",
        ffn_hidden_size=50,
        no_weight_tying=False,
        **keys,
    )
    model = build_sequential(args).eval()
    randomize(model)
    config = transformers.OPTConfig(
        vocab_size=64,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=50,
        max_position_embeddings=12,
        word_embed_proj_dim=12 if behind else 24,
        do_layer_norm_before=not behind,
    )
    reference = transformers.OPTForCausalLM(config).eval()
    assert_same_logits(model, reference, hugging_face_weights(model, args))

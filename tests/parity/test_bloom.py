"""Logits equal Hugging Face's BloomForCausalLM: ALiBi, and a norm behind the word embeddings."""

import pytest
import torch
import transformers

from megatron.model import build_sequential
from tests.common.models import model_args, randomize
from tests.parity.logits import assert_same_logits

NAMES = {
    "attention.query_key_value": "self_attention.query_key_value",
    "attention.dense": "self_attention.dense",
    "mlp.linear1": "mlp.dense_h_to_4h",
    "mlp.linear2": "mlp.dense_4h_to_h",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}


def hugging_face_weights(model) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in model.sequential.state_dict().items():
        index, path = name.split(".", 1)
        stem, kind = path.rsplit(".", 1)
        if stem in NAMES:
            weights[f"transformer.h.{int(index) - 2}.{NAMES[stem]}.{kind}"] = value
        elif stem == "word_embeddings":
            weights["transformer.word_embeddings.weight"] = weights["lm_head.weight"] = value
        elif index == "0":
            weights[f"transformer.word_embeddings_layernorm.{kind}"] = value
        else:
            weights[f"transformer.ln_f.{kind}"] = value
    return weights


@pytest.mark.parametrize("heads", [3, 4])
@torch.no_grad()
def test_logits_equal(heads):
    args = model_args(
        num_attention_heads=heads,
        pos_emb="alibi",
        embedding_layernorm=True,
        bias_gelu_fusion=True,
        no_weight_tying=False,
    )
    model = build_sequential(args).eval()
    randomize(model)
    config = transformers.BloomConfig(vocab_size=64, hidden_size=24, n_layer=2, n_head=heads)
    reference = transformers.BloomForCausalLM(config).eval()
    assert_same_logits(model, reference, hugging_face_weights(model))

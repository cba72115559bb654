"""Logits equal Hugging Face's GPT2LMHeadModel."""

import pytest
import torch
import transformers

from megatron.model import build_sequential
from tests.common.models import model_args, randomize

NAMES = {
    "attention.dense": "attn.c_proj",
    "mlp.linear1": "mlp.c_fc",
    "mlp.linear2": "mlp.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
}


def hugging_face_weights(model, args) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in model.sequential.state_dict().items():
        index, path = name.split(".", 1)
        stem, kind = path.rsplit(".", 1)
        if stem == "attention.query_key_value":
            # rows per head q|k|v -> all q, all k, all v
            heads = args.num_attention_heads
            value = value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            target = "attn.c_attn"
        else:
            target = NAMES.get(stem)
        if target:
            is_matrix = value.dim() == 2  # GPT-2 keeps matrices as [in, out]
            weights[f"transformer.h.{int(index) - 2}.{target}.{kind}"] = value.T if is_matrix else value
        elif stem == "word_embeddings":
            weights["transformer.wte.weight"] = weights["lm_head.weight"] = value
        elif stem == "position_embeddings":
            weights["transformer.wpe.weight"] = value
        else:
            weights[f"transformer.ln_f.{kind}"] = value
    return weights


@pytest.mark.parametrize("tanh", [True, False])
@torch.no_grad()
def test_logits_equal(tanh):
    args = model_args(
        num_layers=3,
        hidden_size=40,
        num_attention_heads=5,
        seq_length=23,
        max_position_embeddings=29,
        intermediate_size=94,
        pos_emb="learned",
        no_weight_tying=False,
        bias_gelu_fusion=tanh,
    )
    args.padded_vocab_size = 67
    model = build_sequential(args).eval()
    randomize(model)
    config = transformers.GPT2Config(
        vocab_size=67,
        n_positions=29,
        n_embd=40,
        n_layer=3,
        n_head=5,
        n_inner=94,
        activation_function="gelu_new" if tanh else "gelu",
        layer_norm_epsilon=args.layernorm_epsilon,
        attn_implementation="eager",
    )
    reference = transformers.GPT2LMHeadModel(config).eval()
    missing, unexpected = reference.load_state_dict(hugging_face_weights(model, args), strict=False)
    assert not missing and not unexpected
    tokens = torch.randint(0, 67, (3, 23), generator=torch.Generator().manual_seed(0))
    expected = reference(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(
        model((tokens, torch.arange(23).expand(3, 23))), expected, rtol=1e-5, atol=1e-5
    )

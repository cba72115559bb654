"""Logits equal Hugging Face's GPTNeoXForCausalLM."""

import pytest
import torch
import transformers

from megatron.model import build_sequential
from tests.common.models import model_args, randomize
from tests.parity.logits import assert_same_logits

NAMES = {
    "attention.query_key_value": "attention.query_key_value",
    "attention.dense": "attention.dense",
    "mlp.linear1": "mlp.dense_h_to_4h",
    "mlp.linear2": "mlp.dense_4h_to_h",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
CASES = {
    "parallel residual, a quarter rotary": {"gpt_j_residual": True, "rotary_pct": 0.25},
    "sequential residual, all rotary, other base": {"rotary_emb_base": 2000, "layernorm_epsilon": 1e-3},
    "odd MLP width, tanh gelu": {"intermediate_size": 58, "bias_gelu_fusion": True, "gpt_j_residual": True},
    "tied output": {"no_weight_tying": False},
    "no attention biases": {"use_bias_in_attn_linear": False},
}


def hugging_face_weights(model) -> dict[str, torch.Tensor]:
    weights = {}
    blocks = len(model.sequential) - 5
    for name, value in model.sequential.state_dict().items():
        index, path = name.split(".", 1)
        stem, kind = path.rsplit(".", 1)
        if stem in NAMES:
            weights[f"gpt_neox.layers.{int(index) - 2}.{NAMES[stem]}.{kind}"] = value
        elif stem == "word_embeddings":
            weights["gpt_neox.embed_in.weight"] = value
        elif stem == "norm":
            weights[f"gpt_neox.final_layer_norm.{kind}"] = value
        else:
            weights["output"] = value
    assert blocks == 3
    return weights


def reference(args, weights):
    config = transformers.GPTNeoXConfig(
        vocab_size=args.padded_vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.num_attention_heads,
        intermediate_size=args.intermediate_size or 4 * args.hidden_size,
        hidden_act="gelu_pytorch_tanh" if args.bias_gelu_fusion else "gelu",
        rotary_pct=args.rotary_pct,
        rotary_emb_base=args.rotary_emb_base,
        max_position_embeddings=args.max_position_embeddings,
        layer_norm_eps=args.layernorm_epsilon,
        use_parallel_residual=args.gpt_j_residual,
        tie_word_embeddings=not args.no_weight_tying,
        attention_bias=args.use_bias_in_attn_linear,
        attn_implementation="eager",
    )
    model = transformers.GPTNeoXForCausalLM(config).eval()
    # The output's name has changed between versions of transformers; the module can be asked for.
    output = weights.pop("output", weights["gpt_neox.embed_in.weight"])
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    model.get_output_embeddings().weight.copy_(output)
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal(case):
    args = model_args(
        num_layers=3,
        hidden_size=40,
        num_attention_heads=5,
        seq_length=23,
        max_position_embeddings=23,
        **CASES[case],
    )
    args.padded_vocab_size = 67
    model = build_sequential(args).eval()
    randomize(model)
    assert_same_logits(model, reference(args, hugging_face_weights(model)), vocabulary=67, length=23)

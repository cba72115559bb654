"""Logits equal Hugging Face's MambaForCausalLM."""

import pytest
import torch
import transformers

from megatron.model import build_sequential
from tests.common.models import model_args, randomize
from tests.parity.logits import assert_same_logits

CASES = {
    "untied": {},
    "tied": {"no_weight_tying": False},
    "no bias in the convolution": {"mamba_use_bias_in_conv": False},
    "other width": {"expansion_factor": 3},
}


def hugging_face_weights(model) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in model.sequential.state_dict().items():
        index, path = name.split(".", 1)
        path = path.replace("norm.scale", "norm.weight")
        if path.startswith("word_embeddings"):
            weights["backbone.embeddings.weight"] = value
        elif path == "final_linear.weight":
            weights["lm_head.weight"] = value
        elif int(index) == len(model.sequential) - 2:
            weights[f"backbone.norm_f.{path.split('.')[1]}"] = value
        else:
            weights[f"backbone.layers.{int(index) - 2}.{path}"] = value
    return weights


def reference(args, weights):
    config = transformers.MambaConfig(
        vocab_size=args.padded_vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_layers,
        expand=int(args.expansion_factor or 2),
        layer_norm_epsilon=args.rms_norm_epsilon,
        use_conv_bias=args.mamba_use_bias_in_conv,
        tie_word_embeddings=not args.no_weight_tying,
    )
    model = transformers.MambaForCausalLM(config).eval()
    weights.setdefault("lm_head.weight", weights["backbone.embeddings.weight"])
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal(case):
    args = model_args(
        num_layers=3,
        hidden_size=40,
        seq_length=23,
        max_position_embeddings=23,
        attention_config=[[["mamba"], "all"]],
        pos_emb="none",
        norm="rmsnorm",
        rms_norm_epsilon=1e-5,
        **CASES[case],
    )
    args.padded_vocab_size = 67
    model = build_sequential(args).eval()
    randomize(model)
    assert_same_logits(model, reference(args, hugging_face_weights(model)), vocabulary=67, length=23)

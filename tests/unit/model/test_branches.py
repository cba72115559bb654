"""Every branch of a block contributes, whatever the block is made of."""

import pytest
import torch

from megatron.model import build_sequential
from tests.common.models import inputs_and_targets, model_args, randomize

MLPS = {
    "dense": {},
    "gated": {"activation": "swiglu", "intermediate_size": 48},
    "experts": {"moe_num_experts": 4, "ffn_hidden_size": 32},
    "gated experts": {
        "moe_num_experts": 4,
        "activation": "swiglu",
        "ffn_hidden_size": 36,
    },
}
RESIDUALS = {
    "sequential": {},
    "parallel": {"gpt_j_residual": True},
    "parallel, one norm": {"gpt_j_residual": True, "gpt_j_tied": True},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_every_parameter_of_a_block_gets_a_gradient(residual, mlp, bias):
    biases = {"use_bias_in_attn_linear": bias, "use_bias_in_mlp": bias}
    model = build_sequential(model_args(**RESIDUALS[residual], **MLPS[mlp], **biases))
    randomize(model)
    inputs, (labels, _) = inputs_and_targets()
    torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), labels.flatten()).backward()
    unused = {"post_attention_layernorm"} if residual == "parallel, one norm" else set()
    seen = set()
    for name, parameter in model.logical_named_parameters():
        path = name.split(".", 1)[1]
        if path.split(".")[0] in unused:
            continue
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-7, f"{name} gets no gradient"
        seen.add(path.split(".")[0])
    assert {"attention", "mlp"} <= seen

"""The model that answers."""

import pytest
import torch

from megatron.engine.inference import InferenceModel
from megatron.model import build_sequential
from tests.common.models import model_args, random_tokens, randomize


@pytest.mark.parametrize("no_weight_tying", [True, False])
def test_the_logits_of_the_last_position_can_be_had_alone(no_weight_tying):
    args = model_args(no_weight_tying=no_weight_tying)
    module = build_sequential(args)
    randomize(module)
    model = InferenceModel(module, args)
    model.inference_mode(use_cache=False)
    inputs = random_tokens(2, 6), torch.arange(6).expand(2, 6)
    whole = model(*inputs)
    torch.testing.assert_close(model(*inputs, last_only=True), whole[:, -1:])
    assert module(inputs).shape == whole.shape, "only that one answer is short"

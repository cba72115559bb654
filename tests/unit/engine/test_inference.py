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


@pytest.mark.parametrize("no_weight_tying", [True, False])
def test_training_finds_every_layer_as_the_answering_has_taken_it(no_weight_tying):
    args = model_args(no_weight_tying=no_weight_tying, sequence_parallel=True)
    module = build_sequential(args)
    parts = [*module.modules(), *module.output_layers()]
    before = [getattr(part, "sequence_parallel", None) for part in parts]
    model = InferenceModel(module, args)
    for _ in range(2):
        model.inference_mode()
        assert not any(getattr(part, "sequence_parallel", False) for part in parts)
        model.train_mode()
        assert [getattr(part, "sequence_parallel", None) for part in parts] == before

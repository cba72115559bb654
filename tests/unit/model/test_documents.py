"""A document in a packed sample gives what it gives alone."""

import pytest
import torch

from megatron.model import build_sequential
from megatron.objectives.pretrain import positions_in_documents
from tests.common.models import VOCABULARY, model_args, randomize

EOD = 5
LENGTHS = ((4, 1, 7), (6, 5, 1))  # of the documents of each row, their end included

MODELS = {
    "rotary": {"rotary_pct": 0.67},
    "rotary, one key head, head norms": {"num_kv_heads": 1, "use_qk_layernorm": True},
    "learned": {"pos_emb": "learned"},
    "none": {"pos_emb": "none"},
    "sinusoidal": {"pos_emb": "sinusoidal"},
    "alibi": {"pos_emb": "alibi"},
    "rpe": {"pos_emb": "rpe", "rpe_num_buckets": 6, "rpe_max_distance": 8},
    "block-sparse": {"attention_config": [[["sparse_fixed"], "all"]], "sparsity_config": {"block": 2}},
    "rwkv": {"attention_config": [[["rwkv"], "all"]], "hidden_size": 32},
    "mamba": {"attention_config": [[["mamba"], "all"]]},
    "window": {"sliding_window_width": 3},
    "parallel residual": {"gpt_j_residual": True},
    "recomputed": {"checkpoint_activations": True, "checkpoint_num_layers": 2},
}


def documents() -> list[list[torch.Tensor]]:
    """Tokens of the documents of each row, int64 [length], closed by the end-of-document token."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for lengths in LENGTHS:
        words = torch.randint(EOD + 1, VOCABULARY, (sum(lengths),), generator=generator)
        rows.append([torch.cat((part[:-1], part.new_tensor([EOD]))) for part in words.split(lengths)])
    return rows


def model_of(keys):
    model = build_sequential(model_args(isolate_documents=True, **keys)).double()
    randomize(model)
    return model


def logits_and_gradients(model, batches):
    """Logits of (tokens, positions) pairs, and gradients of the sum of a fixed function of all of them."""
    model.zero_grad()
    outputs = [model(batch) for batch in batches]
    for logits in outputs:
        logits.sin().sum().backward()
    return outputs, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", MODELS)
def test_a_packed_document_gives_the_logits_and_gradients_that_it_gives_alone(kind):
    model = model_of(MODELS[kind])
    rows = documents()
    packed = torch.stack([torch.cat(row) for row in rows])
    alone = [(text[None], torch.arange(len(text))[None]) for row in rows for text in row]
    found, gradients = logits_and_gradients(model, [(packed, positions_in_documents(packed, EOD))])
    expected, expected_gradients = logits_and_gradients(model, alone)
    joined = torch.cat([logits[0] for logits in expected])
    # Scores with a bias are computed in fp32, all others in the model's fp64.
    tolerance = 1e-5 if kind in ("alibi", "rpe") else 1e-9
    torch.testing.assert_close(found[0].flatten(0, 1), joined, rtol=tolerance, atol=tolerance)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance)


def test_without_the_option_documents_see_each_other():
    model = build_sequential(model_args())
    randomize(model)
    tokens = torch.stack([torch.cat(row) for row in documents()])
    other = tokens.clone()
    other[:, 0] = 60
    positions = torch.arange(12).expand(2, 12)
    assert not torch.equal(model((tokens, positions))[:, -1], model((other, positions))[:, -1])


def test_in_generation_the_whole_text_is_one_document():
    model, plain = model_of({}), build_sequential(model_args()).double()
    randomize(plain)
    tokens = torch.stack([torch.cat(row) for row in documents()])
    positions = torch.arange(12).expand(2, 12)
    with torch.no_grad():
        expected = plain((tokens, positions))
        model.inference_mode(use_cache=True)
        parts = [model((tokens[:, a:b], positions[:, a:b])) for a, b in ((0, 8), (8, 11), (11, 12))]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)
        model.train_mode()
        isolated = model((tokens, positions_in_documents(tokens, EOD)))
    assert not torch.allclose(isolated, expected, atol=1e-3)

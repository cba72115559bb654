"""Tensor and sequence parallelism give the losses and gradients of a single process."""

import pytest
import torch

from megatron import mpu
from megatron.model import build_sequential, cross_entropy
from megatron.model.utils import mark_norms_for_sequence_parallel_grad_sync
from tests.common.distributed import run_distributed
from tests.common.models import (
    inputs_and_targets,
    logical_gradients,
    model_args,
    random_tokens,
    randomize,
)

MODELS = {
    "sequential residual, tied, learned positions": {"no_weight_tying": False, "pos_emb": "learned"},
    "parallel residual, untied, rotary": {"gpt_j_residual": True, "rotary_pct": 0.67},
    "parallel residual, tied norm, recomputed": {
        "gpt_j_residual": True,
        "gpt_j_tied": True,
        "checkpoint_activations": True,
    },
    "grouped keys and values": {
        "num_kv_heads": 2,
        "checkpoint_activations": True,
        "checkpoint_num_layers": 2,
    },
    "no biases": {"use_bias_in_attn_linear": False, "use_bias_in_mlp": False, "use_bias_in_norms": False},
}


def loss_and_gradients(keys, tensor_size=1):
    """Loss and logical gradients of a model with random weights, biases included."""
    if tensor_size > 1:
        mpu.initialize_model_parallel(tensor_size)
        mpu.configure_checkpointing(partition_activations=True)
    model = build_sequential(model_args(model_parallel_size=tensor_size, **keys))
    randomize(model)
    inputs, targets = inputs_and_targets()
    loss = cross_entropy(model(inputs), targets)
    loss.backward()
    return loss.item(), {name: value.clone() for name, value in logical_gradients(model).items()}


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_two_ranks_give_the_loss_and_gradients_of_one(kind, sequence_parallel):
    keys = MODELS[kind]
    expected = loss_and_gradients(keys)
    for found in run_distributed(
        loss_and_gradients, 2, {**keys, "sequence_parallel": sequence_parallel}, tensor_size=2
    ):
        assert_same(found, expected)


def every_mode(keys, tensor_size=1):
    """Training and evaluation logits, and the gathered and cached ones of inference."""
    if tensor_size > 1:
        mpu.initialize_model_parallel(tensor_size)
    model = build_sequential(model_args(model_parallel_size=tensor_size, **keys))
    randomize(model)
    tokens, positions = random_tokens(2, 12), torch.arange(12).expand(2, 12)
    with torch.no_grad():
        training = model((tokens, positions))
        model.inference_mode(use_cache=False)
        full = model((tokens, positions))
        model.inference_mode(use_cache=True)
        parts = [model((tokens[:, a:b], positions[:, a:b])) for a, b in ((0, 8), (8, 11), (11, 12))]
        model.train_mode()
        again = model((tokens, positions))
    return training, full, torch.cat(parts, 1), again


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_inference_gathers_logits_that_training_leaves_cut(tied, sequence_parallel):
    keys = {"no_weight_tying": not tied}
    expected = every_mode(keys)[0]
    ranks = run_distributed(every_mode, 2, {**keys, "sequence_parallel": sequence_parallel}, tensor_size=2)
    for training, full, cached, again in ranks:
        assert training.shape[-1] == 32 and torch.equal(training, again)
        torch.testing.assert_close(full, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks], -1), expected, rtol=1e-5, atol=1e-5)


class Tokenizer:
    vocab_size = 61


def padded_for_the_layout(tensor_size=1):
    """Loss, gradient of the embedding and gathered logits where the layout pads 64 rows to 80."""
    if tensor_size > 1:
        mpu.initialize_model_parallel(tensor_size)
    args = model_args(model_parallel_size=tensor_size, make_vocab_size_divisible_by=16)
    args.tokenizer = Tokenizer()
    args.padded_vocab_size = 64 if tensor_size == 1 else 80
    model = build_sequential(args)
    inputs, targets = inputs_and_targets()
    loss = cross_entropy(model(inputs), targets)
    loss.backward()
    gradients = {name: value.clone() for name, value in logical_gradients(model).items()}
    with torch.no_grad():
        model.inference_mode(use_cache=False)
        return loss.item(), gradients, model(inputs)


def test_rows_padded_for_the_layout_change_nothing():
    expected = padded_for_the_layout()
    for loss, gradients, logits in run_distributed(padded_for_the_layout, 2, tensor_size=2):
        assert loss == pytest.approx(expected[0], rel=1e-6)
        torch.testing.assert_close(logits[..., :64], expected[2], rtol=1e-5, atol=1e-6)
        assert (logits[..., 64:] == -torch.inf).all()
        for name, gradient in gradients.items():
            if "word_embeddings" in name or "final_linear" in name:
                assert (gradient[64:] == 0).all()
                gradient = gradient[:64]
            torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-7, msg=name)


def count_hooks():
    """How often the gradient of each parameter marked for it is summed when marking is asked for again and again."""
    mpu.initialize_model_parallel(2)
    args = model_args(model_parallel_size=2, sequence_parallel=True)
    model = build_sequential(args)
    for _ in range(2):
        mark_norms_for_sequence_parallel_grad_sync(model, args)
    hooks = {
        name: len(parameter._backward_hooks or {}) for name, parameter in model.logical_named_parameters()
    }
    return {name: count for name, count in hooks.items() if count}


def test_each_parameter_that_sees_a_sequence_part_is_summed_exactly_once():
    block = ("input_layernorm", "post_attention_layernorm")
    expected = {f"{i}.{norm}.{kind}" for i in (2, 3) for norm in block for kind in ("weight", "bias")}
    expected |= {f"{i}.{linear}.bias" for i in (2, 3) for linear in ("attention.dense", "mlp.linear2")}
    expected |= {"5.norm.weight", "5.norm.bias"}
    for hooks in run_distributed(count_hooks, 2):
        assert hooks == dict.fromkeys(expected, 1)


def dropped(sequence_parallel, gpt_j_residual):
    """Output of a model of which only one dropout is left standing, and the rank's default random state after it."""
    mpu.initialize_model_parallel(2)
    mpu.model_parallel_cuda_manual_seed(11)
    args = model_args(
        model_parallel_size=2,
        sequence_parallel=sequence_parallel,
        gpt_j_residual=gpt_j_residual,
        hidden_dropout=0.4,
        attention_dropout=0.4,
    )
    model = build_sequential(args)
    randomize(model)
    hidden = model.sequential[0](inputs_and_targets()[0])
    for layer in list(model.sequential)[1:4]:
        hidden = layer(hidden)
    attention = model.sequential[2].attention
    attention.attend = lambda query, key, value, scale, dropout: torch.nn.functional.dropout(query, dropout)
    probabilities = attention.query_key_value.weight.new_ones(12, 2, 24)
    with torch.no_grad():
        attention.query_key_value.weight.fill_(1.0)
        attention.dense.weight.fill_(0.0)
    mask = []
    attention.dense.register_forward_pre_hook(lambda module, inputs: mask.append(inputs[0] == 0))
    attention(probabilities.chunk(2)[mpu.get_model_parallel_rank()] if sequence_parallel else probabilities)
    return hidden.detach(), mask[0], torch.get_rng_state()


@pytest.mark.parametrize("gpt_j_residual", [False, True])
def test_hidden_dropout_is_the_same_on_all_ranks_and_attention_dropout_is_not(gpt_j_residual):
    first, second = run_distributed(dropped, 2, False, gpt_j_residual)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])


def test_with_sequence_parallelism_each_rank_drops_its_own_part():
    first, second = run_distributed(dropped, 2, True, True)
    assert not torch.equal(first[0] == 0, second[0] == 0)
    assert torch.equal(first[2], second[2])

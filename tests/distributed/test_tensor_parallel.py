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
    "norms behind, small normalised embeddings, tied": {
        "norm_placement": "post",
        "embedding_size": 16,
        "embedding_layernorm": True,
        "no_weight_tying": False,
        "norm": "rmsnorm",
        "use_qk_layernorm": True,
        "activation": "swiglu",
        "ffn_hidden_size": 64,
    },
    "small embeddings, untied with bias, relative positions": {
        "embedding_size": 16,
        "use_bias_in_output": True,
        "pos_emb": "rpe",
        "norm": "scalenorm",
    },
    "alibi, normalised embeddings, geglu without biases": {
        "embedding_layernorm": True,
        "pos_emb": "alibi",
        "activation": "geglu",
        "ffn_hidden_size": 48,
        "use_bias_in_mlp": False,
        "norm": "non_parametric_layernorm",
    },
    "no biases": {"use_bias_in_attn_linear": False, "use_bias_in_mlp": False, "use_bias_in_norms": False},
}


def loss_and_gradients(keys, tensor_size=1):
    """Loss and logical gradients of a model with random weights, biases included."""
    model = build_sequential(model_args(model_parallel_size=tensor_size, **keys))
    randomize(model)
    inputs, targets = inputs_and_targets()
    loss = cross_entropy(model(inputs), targets)
    loss.backward()
    return loss.item(), {name: value.clone() for name, value in logical_gradients(model).items()}


def every_model():
    """{(kind, sequence_parallel): loss and gradients} on two ranks."""
    mpu.initialize_model_parallel(2)
    mpu.configure_checkpointing(partition_activations=True)
    return {
        (kind, cut): loss_and_gradients({**keys, "sequence_parallel": cut}, tensor_size=2)
        for kind, keys in MODELS.items()
        for cut in (False, True)
    }


@pytest.fixture(scope="module")
def on_two_ranks():
    return run_distributed(every_model, 2)


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_two_ranks_give_the_loss_and_gradients_of_one(kind, sequence_parallel, on_two_ranks):
    expected = loss_and_gradients(MODELS[kind])
    for rank in on_two_ranks:
        assert_same(rank[kind, sequence_parallel], expected)


def every_mode(keys, tensor_size=1):
    """Training logits, gathered and cached ones of inference, training logits again."""
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


def modes_of(variants):
    mpu.initialize_model_parallel(2)
    return [every_mode(keys, tensor_size=2) for keys in variants]


@pytest.mark.parametrize("tied", [True, False])
def test_inference_gathers_logits_that_training_leaves_cut(tied):
    keys = {"no_weight_tying": not tied}
    expected = every_mode(keys)[0]
    ranks = run_distributed(modes_of, 2, [{**keys, "sequence_parallel": cut} for cut in (False, True)])
    for variants in zip(*ranks, strict=True):
        for training, full, cached, again in variants:
            assert training.shape[-1] == 32 and torch.equal(training, again)
            torch.testing.assert_close(full, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(cached, expected, rtol=1e-5, atol=1e-5)
        joined = torch.cat([modes[0] for modes in variants], -1)
        torch.testing.assert_close(joined, expected, rtol=1e-5, atol=1e-5)


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
    """Hidden states after two blocks, where attention dropped, and the rank's default random state after it."""
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
    attention, masks = model.sequential[2].attention, []
    attention.attend = lambda query, *_, dropout, **__: torch.nn.functional.dropout(query, dropout)
    attention.dense.register_forward_pre_hook(lambda module, inputs: masks.append(inputs[0] == 0))
    attention(torch.ones(6 if sequence_parallel else 12, 2, 24))
    return hidden.detach(), masks[0], torch.get_rng_state()


def dropped_in(variants):
    mpu.initialize_model_parallel(2)
    return [dropped(*variant) for variant in variants]


def test_ranks_drop_the_same_of_what_they_share_and_their_own_of_what_they_do_not():
    shared = [(False, False), (False, True)]
    first, second = run_distributed(dropped_in, 2, [*shared, (True, True)])
    for (hidden, attention, state), (other_hidden, other_attention, other_state) in zip(
        first[:2], second[:2], strict=True
    ):
        assert torch.equal(hidden, other_hidden)
        assert attention.any() and not torch.equal(attention, other_attention)
        assert torch.equal(state, other_state)
    (cut, _, state), (other_cut, _, other_state) = first[2], second[2]
    assert cut.shape[0] == 6 and not torch.equal(cut, other_cut)
    assert torch.equal(state, other_state)


def test_with_sequence_parallelism_each_rank_drops_its_own_part_of_a_branch():
    first, second = run_distributed(branch_dropout, 2)
    assert first.any() and not torch.equal(first, second)


def branch_dropout():
    """Where a block with sequence parallelism drops of a branch that is 1 everywhere."""
    mpu.initialize_model_parallel(2)
    mpu.model_parallel_cuda_manual_seed(11)
    model = build_sequential(model_args(model_parallel_size=2, sequence_parallel=True, hidden_dropout=0.4))
    ones = torch.ones(6, 2, 24)
    return model.sequential[2]._join(torch.zeros_like(ones), ones, None) == 0

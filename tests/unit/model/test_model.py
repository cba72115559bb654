"""The whole model as a plain sequence."""

import itertools

import pytest
import torch

from megatron import mpu
from megatron.model import build_sequential, cross_entropy, get_params_for_weight_decay_optimization
from megatron.mpu.state import Axis
from tests.common.models import inputs_and_targets, logical_gradients, model_args, random_tokens, randomize

BLOCKS = {
    "sequential": {},
    "parallel": {"gpt_j_residual": True},
    "parallel, tied norm": {"gpt_j_residual": True, "gpt_j_tied": True},
}
NO_BIAS = {"use_bias_in_norms": False, "use_bias_in_attn_linear": False, "use_bias_in_mlp": False}
POSITIONS = [{"pos_emb": "rotary", "rotary_pct": 0.67}, {"pos_emb": "learned"}, {"pos_emb": "none"}]


def loss_of(model, **data):
    inputs, targets = inputs_and_targets(**data)
    return cross_entropy(model(inputs), targets)


def keys_and_shapes(**overrides):
    return {
        key: tuple(value.shape)
        for key, value in build_sequential(model_args(**overrides)).state_dict().items()
    }


def block_keys(index):
    prefix = f"sequential.{index}."
    return {
        f"{prefix}input_layernorm.weight": (24,),
        f"{prefix}input_layernorm.bias": (24,),
        f"{prefix}post_attention_layernorm.weight": (24,),
        f"{prefix}post_attention_layernorm.bias": (24,),
        f"{prefix}attention.query_key_value.weight": (72, 24),
        f"{prefix}attention.query_key_value.bias": (72,),
        f"{prefix}attention.dense.weight": (24, 24),
        f"{prefix}attention.dense.bias": (24,),
        f"{prefix}mlp.linear1.weight": (96, 24),
        f"{prefix}mlp.linear1.bias": (96,),
        f"{prefix}mlp.linear2.weight": (24, 96),
        f"{prefix}mlp.linear2.bias": (24,),
    }


def test_state_dict_keys_and_shapes_of_an_untied_model():
    expected = {
        "sequential.0.word_embeddings.weight": (64, 24),
        **block_keys(2),
        **block_keys(3),
        "sequential.5.norm.weight": (24,),
        "sequential.5.norm.bias": (24,),
        "sequential.6.final_linear.weight": (64, 24),
    }
    assert keys_and_shapes() == expected
    assert keys_and_shapes(gpt_j_residual=True, gpt_j_tied=True) == expected


def test_state_dict_keys_of_tied_learned_and_biasless_models():
    tied = keys_and_shapes(no_weight_tying=False, pos_emb="learned")
    assert "sequential.6.final_linear.weight" not in tied
    assert tied["sequential.0.position_embeddings.weight"] == (12, 24)
    assert not any(key.endswith("bias") for key in keys_and_shapes(**NO_BIAS))
    buffered = keys_and_shapes(rotary_save_freqs_buffer=True, rotary_pct=0.34)
    assert buffered["sequential.2.attention.rotary_emb.inv_freq"] == (1,)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("biases", [{}, NO_BIAS], ids=["biases", "no biases"])
def test_every_parameter_of_every_branch_gets_a_gradient(kind, biases):
    for position, tied in itertools.product(POSITIONS, (True, False)):
        model = build_sequential(model_args(no_weight_tying=not tied, **BLOCKS[kind], **biases, **position))
        loss_of(model).backward()
        for name, parameter in model.logical_named_parameters():
            if "tied norm" in kind and "post_attention_layernorm" in name:
                assert parameter.grad is None
            else:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("interval", [1, 2, 3])
def test_activation_checkpointing_changes_no_result(kind, dropout, interval):
    results = []
    for keys in ({}, {"checkpoint_activations": True, "checkpoint_num_layers": interval}):
        args = model_args(
            num_layers=3, attention_dropout=dropout, hidden_dropout=dropout, **BLOCKS[kind], **keys
        )
        model = build_sequential(args)
        mpu.model_parallel_cuda_manual_seed(3)
        loss = loss_of(model)
        loss.backward()
        results.append({"loss": loss.detach(), **logical_gradients(model)})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("interval, stretches", [(1, [1, 1, 1]), (2, [2, 1]), (5, [3])])
def test_blocks_and_only_blocks_are_recomputed(interval, stretches):
    args = model_args(num_layers=3, checkpoint_activations=True, checkpoint_num_layers=interval)
    model = build_sequential(args)
    seen = []
    plain = model.activation_checkpoint_func
    model.activation_checkpoint_func = lambda function, x: seen.append(function.layers) or plain(function, x)
    loss_of(model).backward()
    assert [len(layers) for layers in seen] == stretches
    names = {type(layer).__name__ for layers in seen for layer in layers}
    assert names == {"ParallelTransformerLayerPipe"}


def test_dropout_acts_in_training_only():
    model = build_sequential(model_args(attention_dropout=0.2, hidden_dropout=0.2))
    torch.manual_seed(0)
    assert loss_of(model).item() != loss_of(model).item()
    model.eval()
    assert loss_of(model).item() == loss_of(model).item()


@pytest.mark.parametrize("position", POSITIONS, ids=lambda keys: keys["pos_emb"])
@pytest.mark.parametrize("kind", ["sequential", "parallel"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_cached_logits_equal_full_ones(position, kind, kv_heads):
    model = build_sequential(model_args(num_kv_heads=kv_heads, **position, **BLOCKS[kind]))
    randomize(model)
    tokens, positions = random_tokens(2, 12), torch.arange(12).expand(2, 12)
    full = model((tokens, positions))
    model.inference_mode(use_cache=True)
    for _ in range(2):  # the second round starts from a cleared cache
        model.clear_cache()
        parts = [
            model((part, ids))
            for part, ids in zip(
                tokens.split((5, 3, 1, 1, 1, 1), 1), positions.split((5, 3, 1, 1, 1, 1), 1), strict=True
            )
        ]
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-5, atol=1e-5)
    model.train_mode()
    assert model.training
    for _ in range(2):  # nothing is remembered any more
        torch.testing.assert_close(model((tokens, positions)), full)


@torch.no_grad()
def test_sequences_may_outgrow_the_rotary_table():
    model = build_sequential(model_args())
    tokens, positions = random_tokens(1, 40), torch.arange(40).expand(1, 40)
    full = model((tokens, positions))
    model.inference_mode()
    parts = [model((tokens[:, :30], positions[:, :30])), model((tokens[:, 30:], positions[:, 30:]))]
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_position_ids_index_learned_positions_with_the_offset():
    model = build_sequential(model_args(pos_emb="learned"))
    shifted = build_sequential(model_args(pos_emb="learned"))
    shifted.sequential[0].position_embeddings.offset = 2
    tokens, positions = random_tokens(2, 6), torch.arange(6).expand(2, 6)
    torch.testing.assert_close(shifted((tokens, positions)), model((tokens, positions + 2)))
    assert not torch.equal(model((tokens, positions)), model((tokens, positions + 2)))


def test_a_position_sees_no_later_token():
    model = build_sequential(model_args())
    tokens, positions = random_tokens(1, 12), torch.arange(12).expand(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 61
    one, other = model((tokens, positions)), model((changed, positions))
    assert torch.equal(one[:, :7], other[:, :7])
    assert (one[:, 7:] != other[:, 7:]).any(-1).all()


def test_initial_weights_are_a_function_of_seed_and_logical_name():
    torch.manual_seed(1)
    first = dict(build_sequential(model_args()).logical_named_parameters())
    torch.manual_seed(2)
    again = dict(build_sequential(model_args()).logical_named_parameters())
    other = dict(build_sequential(model_args(seed=4321)).logical_named_parameters())
    deeper = dict(build_sequential(model_args(num_layers=4)).logical_named_parameters())
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name]), name
    weight = "2.attention.query_key_value.weight"
    assert torch.equal(first[weight], deeper[weight])
    assert not torch.equal(first[weight], other[weight])
    assert not torch.equal(first[weight], first["3.attention.query_key_value.weight"])


@pytest.mark.parametrize("keys", [{}, {"num_kv_heads": 2, "no_weight_tying": False}])
@pytest.mark.parametrize("method", ["normal", "xavier_uniform", "orthogonal"])
def test_initial_weights_are_the_same_for_every_tensor_parallel_degree(keys, method):
    args = model_args(init_method=method, output_layer_init_method=method, **keys)
    whole = dict(build_sequential(args).logical_named_parameters())
    ranks = []
    for rank in range(2):
        with mpu.use(mpu.ParallelState(tensor=Axis(ranks=(0, 1), rank=rank))):
            ranks.append(dict(build_sequential(args).logical_named_parameters()))
    for name, parameter in whole.items():
        merged = mpu.merge_slices([rank[name] for rank in ranks], parameter.spec)
        assert torch.equal(merged, parameter), name


def test_weights_are_made_in_full_precision():
    model = build_sequential(model_args(precision="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_model_gives_16_bit_logits_close_to_the_fp32_ones(dtype):
    model = build_sequential(model_args(rotary_save_freqs_buffer=True))
    inputs, targets = inputs_and_targets()
    reference = model(inputs)
    halved = model.to(dtype)
    logits = halved(inputs)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), reference, rtol=0.05, atol=0.01)
    cross_entropy(logits, targets).backward()
    assert all(parameter.grad.isfinite().all() for parameter in halved.parameters())


def test_norms_and_biases_do_not_decay_and_nothing_is_listed_twice():
    model = build_sequential(model_args(no_weight_tying=False))
    model.sequential[2].mlp.linear1.weight._no_weight_decay = True
    names = {id(parameter): name for name, parameter in model.logical_named_parameters()}
    decayed, fixed = get_params_for_weight_decay_optimization(model, model_args())
    assert (decayed["name"], fixed["name"]) == ("weight_decay_params", "no_weight_decay_params")
    assert fixed["weight_decay"] == 0.0 and "weight_decay" not in decayed
    listed = [names[id(parameter)] for group in (decayed, fixed) for parameter in group["params"]]
    assert sorted(listed) == sorted(names.values())
    plain = {names[id(parameter)] for parameter in fixed["params"]}
    expected = {name for name in names.values() if name.endswith("bias") or "norm" in name}
    assert plain == expected | {"2.mlp.linear1.weight"}


def test_without_weight_decay_there_is_one_group():
    model = build_sequential(model_args())
    (group,) = get_params_for_weight_decay_optimization(model, model_args(weight_decay=0.0))
    assert group["name"] == "no_weight_decay_params"
    assert len(group["params"]) == len(list(model.parameters()))


def test_curriculum_length_cuts_the_inputs():
    model = build_sequential(model_args())
    inputs, _ = inputs_and_targets()
    cut = tuple(tensor[:, :8] for tensor in inputs)
    torch.testing.assert_close(model(inputs, curriculum_seqlen=8), model(cut))


def test_the_batch_function_makes_the_inputs():
    model = build_sequential(model_args())
    (tokens, positions), _ = inputs_and_targets()
    expected = model((tokens, positions))
    model.set_batch_fn(lambda batch: (batch["tokens"], batch["positions"]))
    assert torch.equal(model({"tokens": tokens, "positions": positions}), expected)


def test_a_model_on_the_meta_device_counts_parameters_without_memory():
    args = model_args(
        num_layers=44, hidden_size=6144, num_attention_heads=64, seq_length=2048, max_position_embeddings=2048
    )
    args.padded_vocab_size = 50432
    with torch.device("meta"):
        model = build_sequential(args)
    assert sum(parameter.numel() for parameter in model.parameters()) == 20_554_567_680


@pytest.mark.parametrize("kind", ["sequential", "parallel"])
def test_torch_compile_sees_a_block_as_one_graph(kind):
    block = build_sequential(model_args(**BLOCKS[kind])).sequential[2]
    hidden = torch.randn(12, 2, 24, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(hidden), block(hidden))

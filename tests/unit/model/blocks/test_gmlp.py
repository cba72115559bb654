"""gMLP and aMLP blocks against their definition."""

import pytest
import torch
import torch.nn.functional as F

from megatron.common.errors import ConfigError
from megatron.model import build_sequential
from megatron.model.gmlp import GMLPBlock
from megatron.model.init_functions import get_init_methods
from megatron.neox_arguments.features import check_features
from tests.common.models import inputs_and_targets, model_args, randomize

KINDS = ["gmlp", "amlp"]


def gmlp_model(kind, **keys):
    keys = {"attention_config": [[[kind], "all"]], "pos_emb": "none", "gmlp_attn_dim": 6} | keys
    model = build_sequential(model_args(**keys))
    randomize(model)
    return model


def written_out(block, hidden):
    """The block's output [s, b, h], position by position."""
    features = F.gelu(block.input_linear(block.norm(hidden))[0])
    kept, gate = features.chunk(2, -1)
    gate = block.sgu.norm(gate)
    weight, bias = block.sgu.proj.weight, block.sgu.proj.bias
    mixed = []
    for i in range(len(hidden)):
        mixture = bias[i] + sum(weight[i, j] * gate[j] for j in range(i + 1))
        if block.sgu.attn is not None:
            mixture = mixture + attended(block.sgu.attn, features, i)
        mixed.append(mixture)
    output = (torch.stack(mixed) * kept) @ block.output_linear.weight.T + block.output_linear.bias
    return hidden + output


def attended(attention, features, i):
    query, key, value = attention.proj_qkv(features).chunk(3, -1)
    scores = torch.stack([(query[i] * key[j]).sum(-1) for j in range(i + 1)]) / query.shape[-1] ** 0.5
    context = (scores.softmax(0).unsqueeze(-1) * value[: i + 1]).sum(0)
    return context @ attention.proj_ffn.weight.T + attention.proj_ffn.bias


@pytest.mark.parametrize("length", [12, 7, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_block_equals_its_definition_at_every_length(kind, length):
    block = gmlp_model(kind).sequential[2].double()
    hidden = torch.randn(length, 2, 24, dtype=torch.double)
    expected = written_out(block, hidden)
    torch.testing.assert_close(block(hidden), expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(block(hidden).square().sum(), list(block.parameters()))
    others = torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    for own, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_is_not_seen(kind):
    model = gmlp_model(kind)
    (tokens, positions), _ = inputs_and_targets()
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 60
    before, after = model((tokens, positions)), model((changed, positions))
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8], after[:, 8])


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_names_are_those_of_gpt_neox(kind):
    names = {name: tuple(t.shape) for name, t in gmlp_model(kind).sequential[2].state_dict().items()}
    tiny = {
        "sgu.attn.proj_qkv.weight": (18, 192),
        "sgu.attn.proj_qkv.bias": (18,),
        "sgu.attn.proj_ffn.weight": (96, 6),
        "sgu.attn.proj_ffn.bias": (96,),
    }
    assert names == {
        "norm.weight": (24,),
        "norm.bias": (24,),
        "input_linear.weight": (192, 24),
        "input_linear.bias": (192,),
        "sgu.norm.weight": (96,),
        "sgu.norm.bias": (96,),
        "sgu.proj.weight": (12, 12),
        "sgu.proj.bias": (12,),
        "output_linear.weight": (24, 96),
        "output_linear.bias": (24,),
        **(tiny if kind == "amlp" else {}),
    }


@pytest.mark.parametrize(
    ("keys", "width"), [({}, 96), ({"expansion_factor": 2.0}, 48), ({"intermediate_size": 40}, 40)]
)
def test_the_width_follows_the_keys(keys, width):
    assert gmlp_model("gmlp", **keys).sequential[2].output_linear.weight.shape == (24, width)


def test_ff_mult_is_the_width_in_hidden_sizes():
    args = model_args(attention_config=[[["gmlp"], "all"]])
    block = GMLPBlock(args, *get_init_methods(args), 0, ff_mult=3)
    assert block.output_linear.weight.shape == (24, 72)


def test_the_gate_starts_open():
    block = build_sequential(model_args(attention_config=[[["gmlp"], "all"]])).sequential[2]
    gates = torch.randn(5, 2, 96)
    assert block.sgu.proj(gates, 0).eq(1).all()


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 1, 5], [2, 4, 6]])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_pieces_equal_one_pass(kind, pieces):
    model = gmlp_model(kind)
    (tokens, positions), _ = inputs_and_targets()
    with torch.no_grad():
        expected = model((tokens, positions))
        model.inference_mode(use_cache=True)
        for _ in range(2):  # the second prompt does not see the first
            model.clear_cache()
            found = [
                model(part) for part in zip(tokens.split(pieces, 1), positions.split(pieces, 1), strict=True)
            ]
            torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_cache", [False, True])
def test_more_positions_than_weights_are_refused(use_cache):
    block = gmlp_model("gmlp").sequential[2]
    block.sgu.use_cache = use_cache
    hidden = torch.randn(13, 2, 24)
    with (
        torch.no_grad(),
        pytest.raises(ConfigError, match="mix seq_length=12 positions, but the input has 13"),
    ):
        for part in hidden.split(12 if use_cache else 13):
            block(part)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_change_no_gradient(kind):
    gradients = []
    dropout = {"hidden_dropout": 0.1} | ({"attention_dropout": 0.1} if kind == "amlp" else {})
    for recompute in (False, True):
        torch.manual_seed(1)
        model = gmlp_model(kind, checkpoint_activations=recompute, **dropout)
        inputs, _ = inputs_and_targets()
        torch.manual_seed(1)
        model(inputs).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["hidden_dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(key):
    block = gmlp_model("amlp", **{key: 0.5}).sequential[2]
    hidden = torch.randn(12, 2, 24)
    assert not torch.equal(block(hidden), block(hidden))
    block.eval()
    assert torch.equal(block(hidden), block(hidden))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_follows_fp32(kind):
    block = gmlp_model(kind).sequential[2]
    hidden = torch.randn(12, 2, 24).bfloat16()
    expected = block(hidden.float()) - hidden.float()
    found = block.bfloat16()(hidden) - hidden
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.03 * expected.norm()


def test_impossible_configs_are_refused_in_one_line():
    keys = {"attention_config": [[["amlp"], "all"]]}
    with pytest.raises(ConfigError, match="gmlp_attn_dim=0 must be above 0"):
        model_args(**keys, gmlp_attn_dim=0)
    with pytest.raises(ConfigError, match="amlp blocks have 33 features"):
        model_args(**keys, expansion_factor=1.375, model_parallel_size=2)
    model_args(**keys, num_attention_heads=7)
    with pytest.raises(ConfigError, match=r"amlp does not support isolated documents \(isolate_documents"):
        check_features(model_args(**keys, isolate_documents=True))

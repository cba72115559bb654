"""Position schemes against transformers and against their formulas, and their decoding with a cache."""

import math

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from megatron import mpu
from megatron.common.errors import ConfigError
from megatron.model.positional_embeddings import AliBi, SinusoidalPositionalEmbedding
from megatron.model.positional_embeddings.alibi import alibi_slopes, rank_slopes
from megatron.model.sequential import build_sequential
from megatron.mpu.relative_position_bias import relative_position_bucket
from megatron.neox_arguments import NeoXArgs
from megatron.registry import lookup
from tests.common.models import model_args, random_tokens, randomize
from tests.unit.neox_arguments.basic import minimal


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 20, 71, 112])
def test_slopes_are_those_of_bloom(heads):
    # At position 1, BLOOM's tensor holds the slopes themselves.
    reference = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), reference)


def test_golden_slopes():
    assert alibi_slopes(8).tolist() == [2.0**-number for number in range(1, 9)]
    assert alibi_slopes(3).tolist() == [2.0**-4, 2.0**-8, 2.0**-2]


@pytest.mark.parametrize("heads, ranks", [(12, 4), (6, 2)])
def test_the_ranks_have_the_slopes_of_their_heads(heads, ranks):
    parts = [rank_slopes(heads, ranks, rank) for rank in range(ranks)]
    assert torch.equal(torch.cat(parts), alibi_slopes(heads))


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_the_bias_of_alibi_is_minus_slope_times_distance(queries):
    alibi = AliBi(6, mp_size=2, mp_rank=1)
    assert AliBi(6).slopes.shape == (6,)
    found = alibi.bias(queries, 7, torch.device("cpu"), torch.float32)
    for head, slope in enumerate(alibi_slopes(6)[3:]):
        for row, query in enumerate(range(7 - queries, 7)):
            expected = [-float(slope) * max(0, query - key) for key in range(7)]
            assert found[head, row].tolist() == pytest.approx(expected)
    scores = torch.randn(2, 3, queries, 7)
    torch.testing.assert_close(alibi(scores), scores + found)


def test_half_precision_does_not_blur_positions():
    found = AliBi(1).half().bias(1, 5001, torch.device("cpu"), torch.float32)
    expected = -(torch.arange(5000, -1, -1).float()) * alibi_slopes(1)
    torch.testing.assert_close(found[0, 0], expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("buckets, furthest", [(32, 128), (8, 16), (10, 77)])
def test_buckets_are_those_of_t5(causal, buckets, furthest):
    distance = torch.arange(-300, 301)
    reference = T5Attention._relative_position_bucket(-distance, not causal, buckets, furthest)
    assert torch.equal(relative_position_bucket(distance, buckets, furthest, causal), reference)


def test_the_relative_bias_is_a_table_of_buckets_and_heads():
    bias = mpu.ParallelRelativePositionBias(model_args(), 3.0, num_buckets=8, max_distance=20, heads=4)
    whole = bias(11, 11)
    assert bias.weight.shape == (8, 4) and whole.shape == (1, 4, 11, 11)
    for query, key in ((0, 0), (10, 3), (4, 4), (10, 0)):
        bucket = relative_position_bucket(torch.tensor(query - key), 8, 20)
        torch.testing.assert_close(whole[0, :, query, key], 3.0 * bias.weight[bucket])
    # With a cache the queries are the last positions.
    assert torch.equal(bias(2, 11), whole[:, :, 9:])


def test_the_relative_bias_of_a_model_is_scaled_by_the_root_of_a_heads_size():
    args = model_args(pos_emb="rpe", rpe_num_buckets=8, rpe_max_distance=20)
    module = lookup("positional embedding", "rpe").in_scores(args)
    distance = torch.arange(12).view(3, 4)
    expected = module.weight[relative_position_bucket(distance, 8, 20)].permute(2, 0, 1) * math.sqrt(6)
    torch.testing.assert_close(module(distance), expected)


def test_all_layers_have_one_relative_bias():
    model = build_sequential(model_args(pos_emb="rpe"))
    names = [name for name, _ in model.logical_named_parameters() if "rpe" in name]
    assert names == ["2.attention.rpe.weight"]
    assert model.sequential[2].attention.rpe.weight is model.sequential[3].attention.rpe.weight


def test_sinusoidal_positions_are_sines_then_cosines():
    embedding = SinusoidalPositionalEmbedding(8, precision=torch.float32)
    ids = torch.tensor([[0, 3, 11], [5, 5, 4000]])
    found = embedding(ids)
    for row in range(2):
        for column in range(3):
            angles = [ids[row, column].item() * 10000 ** (-2 * j / 8) for j in range(4)]
            expected = [*map(math.sin, angles), *map(math.cos, angles)]
            assert found[row, column].tolist() == pytest.approx(expected, abs=5e-4)
    assert embedding.state_dict().keys() == {"inv_freq"}


def test_sinusoidal_positions_stay_precise_in_half_precision():
    half = SinusoidalPositionalEmbedding(8, precision=torch.bfloat16).bfloat16()
    ids = torch.arange(3000, 3010)[None]
    exact = SinusoidalPositionalEmbedding(8, precision=torch.float32)(ids)
    assert half(ids).dtype == torch.bfloat16
    assert torch.equal(half(ids), exact.bfloat16())


def test_learned_positions_with_an_offset_are_those_of_opt():
    args = model_args(pos_emb="learned", opt_pos_emb_offset=2, max_position_embeddings=14)
    scheme = lookup("positional embedding", "learned")
    ours = scheme.at_embedding(args, 24, 14, lambda tensor, generator=None: tensor.normal_())
    theirs = OPTLearnedPositionalEmbedding(12, 24)
    theirs.weight.data = ours.weight.data
    mask = torch.ones(2, 12, dtype=torch.long)
    ids = torch.arange(12).expand(2, -1)
    assert torch.equal(ours(ids), theirs(mask))
    assert torch.equal(ours(ids[:, 7:8]), theirs(mask[:, :8], past_key_values_length=7))


@pytest.mark.parametrize("keys", [{}, {"opt_pos_emb_offset": 2, "max_position_embeddings": 14}])
@pytest.mark.parametrize("scheme", ["learned", "sinusoidal", "rotary", "rpe", "alibi", "none"])
def test_a_cache_changes_no_logits(scheme, keys):
    if keys and scheme != "learned":
        keys = {}
    model = build_sequential(model_args(pos_emb=scheme, num_attention_heads=3, **keys))
    randomize(model)
    tokens, positions = random_tokens(2, 12), torch.arange(12).expand(2, -1)
    model.inference_mode(use_cache=False)
    with torch.no_grad():
        whole = model((tokens, positions))
        model.inference_mode(use_cache=True)
        ends = [0, 5, 6, 7, 10, 12]
        parts = [
            model((tokens[:, start:end], positions[:, start:end]))
            for start, end in zip(ends, ends[1:], strict=False)
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal", "rotary", "rpe", "alibi"])
def test_the_order_of_tokens_matters(scheme):
    model = build_sequential(model_args(pos_emb=scheme, num_layers=1))
    randomize(model)
    tokens, positions = random_tokens(1, 12), torch.arange(12)[None]
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    # Without positions, what the last token sees is a set.
    assert not torch.allclose(
        model((tokens, positions))[:, -1], model((swapped, positions))[:, -1], atol=1e-5
    )


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"opt_pos_emb_offset": 2}, "need a table of 34 positions; raise max_position_embeddings=32"),
        ({"opt_pos_emb_offset": 2, "pos_emb": "rotary"}, "of pos_emb: learned, not of rotary"),
        (
            {"pos_emb": "rpe", "rpe_max_distance": 16},
            "rpe_max_distance=16 must exceed half of rpe_num_buckets=32",
        ),
        (
            {"pos_emb": "sinusoidal", "hidden_size": 63, "num_attention_heads": 3},
            "needs an even hidden_size, not 63",
        ),
    ],
)
def test_positions_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        NeoXArgs.from_dict(minimal(**keys))

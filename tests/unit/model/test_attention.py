import math

import pytest
import torch

from megatron import mpu
from megatron.model.attention import KeyValueCache, ParallelSelfAttention, one_query
from megatron.model.attention.heads import HeadLayout
from megatron.model.attention.pattern import Pattern
from megatron.model.init_functions import init_method_normal
from megatron.mpu.parameters import ParameterSpec, local_slice
from megatron.registry import lookup
from tests.common.models import model_args


def sdpa():
    return lookup("attention back-end", "sdpa")(Pattern())


def explicit_attention(query, key, value, scale):
    """The textbook formula, with the last query at the last key."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    queries, keys = query.shape[2], key.shape[2]
    scores = query @ key.transpose(-1, -2) * scale
    future = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("queries, keys", [(7, 7), (1, 7), (3, 7), (1, 1)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_sdpa_equals_the_formula(queries, keys, kv_heads):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, queries, 8, generator=generator)
    key, value = (torch.randn(2, kv_heads, keys, 8, generator=generator) for _ in range(2))
    output = sdpa()(query, key, value, scale=0.3, dropout=0.0)
    torch.testing.assert_close(output, explicit_attention(query, key, value, 0.3))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("converted", [one_query.CONVERTED, 100, 1])
@pytest.mark.parametrize("window", [None, 5])
def test_one_query_of_16_bits_is_answered_in_fp32(kv_heads, converted, window, monkeypatch):
    monkeypatch.setattr(one_query, "CONVERTED", converted)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 1, 8, generator=generator).bfloat16()
    room = torch.randn(2, 3, kv_heads, 20, 8, generator=generator).bfloat16()
    key, value = room[:, :, :, :7]  # a cache has room for more
    attend = lookup("attention back-end", "blockwise" if window else "sdpa")(Pattern(window=window))
    output = attend(query, key, value, scale=0.3, dropout=0.0)
    seen = slice(-window if window else None, None)
    exact = explicit_attention(query.float(), key[:, :, seen].float(), value[:, :, seen].float(), 0.3)
    assert torch.equal(output, exact.bfloat16())


def test_sdpa_drops_softmax_weights():
    query, key = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8)
    value = torch.ones(1, 1, 64, 8)
    torch.manual_seed(0)
    output = sdpa()(query, key, value, scale=1.0, dropout=0.5)
    # equal weights: the last row keeps about half of 64 of them, each doubled
    assert output[0, 0, -1, 0].item() != 1.0
    assert output[0, 0, 32:].mean().item() == pytest.approx(1.0, abs=0.15)


def attention_layer(**keys):
    args = model_args(pos_emb="learned", **keys)
    init = init_method_normal(0.3)
    layer = ParallelSelfAttention(args, None, init, init, layer_number=1)
    return layer.eval()


def test_projection_rows_are_query_key_value_of_each_head():
    # golden: q00 q01 k00 k01 v00 v01 q10 ... for heads of size 2
    layer = attention_layer(hidden_size=8)
    rows = torch.arange(24.0).view(1, 1, 24)
    query, key, value = layer.layout.split(rows)
    assert query[0, 0].tolist() == [[0, 1], [6, 7], [12, 13], [18, 19]]
    assert key[0, 0].tolist() == [[2, 3], [8, 9], [14, 15], [20, 21]]
    assert value[0, 0].tolist() == [[4, 5], [10, 11], [16, 17], [22, 23]]


def test_grouped_projection_rows_are_all_queries_then_keys_then_values_of_each_rank():
    layer = attention_layer(hidden_size=8, num_kv_heads=2)
    spec = layer.query_key_value.weight.spec
    assert spec.logical_shape == (16, 8) and spec.blocks == (8, 4, 4)
    rows = torch.arange(16.0).view(16, 1).expand(16, 8)
    of_second_rank = local_slice(rows, spec, 1, 2)[:, 0].tolist()
    assert of_second_rank == [4, 5, 6, 7, 10, 11, 14, 15]
    query, key, value = layer.layout.split(torch.arange(16.0).view(1, 1, 16))
    assert query[0, 0].flatten().tolist() == list(range(8))
    assert key[0, 0].flatten().tolist() == [8, 9, 10, 11]
    assert value[0, 0].flatten().tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_equals_the_formula(kv_heads, bias):
    layer = attention_layer(num_kv_heads=kv_heads, use_bias_in_attn_linear=bias)
    hidden = torch.randn(7, 2, 24)
    if bias:
        for linear in (layer.query_key_value, layer.dense):
            torch.nn.init.normal_(linear.bias)
    output, skipped = layer(hidden)
    assert skipped is None and (layer.dense.bias is not None) == bias
    qkv = torch.nn.functional.linear(hidden, layer.query_key_value.weight, layer.query_key_value.bias)
    if kv_heads == 4:
        query, key, value = qkv.view(7, 2, 4, 3, 6).unbind(3)
    else:
        query, key, value = qkv.view(7, 2, 8, 6).split((4, 2, 2), 2)
    query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
    context = explicit_attention(query, key, value, 1 / math.sqrt(6))
    expected = torch.nn.functional.linear(
        context.permute(2, 0, 1, 3).reshape(7, 2, 24), layer.dense.weight, layer.dense.bias
    )
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_the_cache_returns_everything_appended_so_far():
    cache = KeyValueCache()
    keys, values = torch.randn(2, 3, 200, 4), torch.randn(2, 3, 200, 4)
    start = 0
    for count in (5, 1, 1, 70, 123):
        key, value = cache.append(keys[:, :, start : start + count], values[:, :, start : start + count])
        start += count
        assert cache.length == start
        assert torch.equal(key, keys[:, :, :start]) and torch.equal(value, values[:, :, :start])


def turned(x, positions, base=10000.0):
    """x [s, b, n, d] rotated by the textbook's angles; positions [s, b]."""
    half = x.shape[-1] // 2
    angles = positions[:, :, None, None] * base ** (-torch.arange(half) / half)
    first, second = x.split(half, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rotary", [True, False])
def test_queries_and_keys_are_normalised_head_by_head_before_they_are_rotated(kv_heads, rotary):
    args = model_args(num_kv_heads=kv_heads, use_qk_layernorm=True)
    init = init_method_normal(0.3)
    layer = ParallelSelfAttention(args, None, init, init, layer_number=0, rotary=rotary)
    for norm in (layer.q_layernorm, layer.k_layernorm):
        assert norm.weight.shape == (6,)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    hidden = torch.randn(7, 2, 24)
    output, _ = layer(hidden)
    query, key, value = layer.layout.split(layer.query_key_value(hidden)[0])
    query, key = (
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * norm.weight
        + norm.bias
        for x, norm in ((query, layer.q_layernorm), (key, layer.k_layernorm))
    )
    if rotary:
        positions = torch.arange(7.0)[:, None].expand(7, 2)
        query, key = turned(query, positions), turned(key, positions)
    context = explicit_attention(*(t.permute(1, 2, 0, 3) for t in (query, key, value)), 1 / math.sqrt(6))
    expected = layer.dense(context.permute(2, 0, 1, 3).reshape(7, 2, 24))[0]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_the_size_of_a_head_need_not_follow_from_the_hidden_size():
    layer = attention_layer(head_dim=8, num_kv_heads=2)
    assert layer.query_key_value.weight.shape == ((4 + 2 + 2) * 8, 24)
    assert layer.dense.weight.shape == (24, 32)
    assert layer(torch.randn(7, 2, 24))[0].shape == (7, 2, 24) and layer.scale == 1 / math.sqrt(8)


def test_the_scale_of_the_scores_can_be_set():
    layer, plain = attention_layer(attention_softmax_scale=1.0), attention_layer()
    plain.load_state_dict(layer.state_dict())
    hidden = torch.randn(7, 2, 24)
    assert layer.scale == 1.0 and not torch.allclose(layer(hidden)[0], plain(hidden)[0], atol=1e-3)
    plain.scale = 1.0
    assert torch.equal(layer(hidden)[0], plain(hidden)[0])


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("qkv", [None, True, False])
@pytest.mark.parametrize("dense", [None, True, False])
def test_biases_of_the_two_projections_are_chosen_together_or_one_by_one(both, qkv, dense):
    layer = attention_layer(
        use_bias_in_attn_linear=both, use_bias_in_attn_qkv=qkv, use_bias_in_attn_dense=dense
    )
    assert (layer.query_key_value.bias is not None) == (both if qkv is None else qkv)
    assert (layer.dense.bias is not None) == (both if dense is None else dense)


def test_ranks_that_share_a_head_store_its_rows_once_and_see_it_whole(monkeypatch):
    # 4 query heads, 2 key/value heads of size 2, on 4 ranks: golden rows of rank 2
    layouts = [HeadLayout(4, 2, 2, ranks=4, rank=rank) for rank in range(4)]
    spec = ParameterSpec((16,), None, shard_dim=0, blocks=layouts[0].sections)
    names = "q00 q01 q10 q11 q20 q21 q30 q31 k00 k01 k10 k11 v00 v01 v10 v11".split()
    rows = torch.arange(16.0)
    parts = [local_slice(rows, spec, rank, 4) for rank in range(4)]
    assert [names[int(row)] for row in parts[2]] == ["q20", "q21", "k10", "v10"]
    gathered = torch.stack([part[2:] for part in parts])[:, None, None]
    monkeypatch.setattr(mpu, "gather_from_sequence_parallel_region", lambda own: gathered)
    whole = layouts[2].whole_heads(parts[2].view(1, 1, 4))
    assert [names[int(row)] for row in whole.flatten()] == ["q20", "q21", "k10", "k11", "v10", "v11"]

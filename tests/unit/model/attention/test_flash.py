"""The flash-attn package is asked for just what the pattern says. It needs a GPU, so a stand-in with the package's
interface computes the definition; the kernels are tested in tests/gpu."""

import sys
import types

import pytest
import torch

from megatron.model.attention import flash
from megatron.model.attention.backend import Demands, make_backend
from megatron.model.attention.flash import FlashAttention
from megatron.model.attention.pattern import Pattern
from tests.unit.model.attention.reference import (
    PATTERNS,
    dense_attention,
    random_layout,
    some_documents,
    tensors,
)

SCALE = 0.3
ABLE = ("causal", "window", "wide window", "window of one", "alibi", "alibi, window, factor")


def stand_in_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                  alibi_slopes=None):  # fmt: skip
    """flash_attn_func, as its documentation defines it: q [b, s, n, d], k, v [b, t, kv, d], the last query at the last
    key, window_size = keys seen to the left and to the right, slopes fp32 [n]."""
    assert causal and dropout_p == 0.0 and softmax_scale == SCALE
    query, key, value = (t.transpose(1, 2).double() for t in (q, k, v))
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    queries, keys = query.shape[2], key.shape[2]
    apart = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    scores = query @ key.transpose(-1, -2) * softmax_scale
    if alibi_slopes is not None:
        assert alibi_slopes.dtype == torch.float32
        scores = scores - alibi_slopes.double()[:, None, None] * apart.abs()
    hidden = apart < 0
    if window_size[0] >= 0:
        hidden = hidden | (apart > window_size[0])
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2).to(q.dtype)


def stand_in_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    """flash_attn_varlen_func: q [all queries, n, d] of sequences one behind the other, that end at cu_seqlens_q[1:]."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q[0] == cu_seqlens_k[0] == 0
    assert cu_seqlens_q[-1] == len(q) and cu_seqlens_k[-1] == len(k)
    outputs = []
    for (first_q, last_q), (first_k, last_k) in zip(
        zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], strict=True),
        zip(cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True),
        strict=True,
    ):
        assert last_q - first_q <= max_seqlen_q and last_k - first_k <= max_seqlen_k
        parts = (q[None, first_q:last_q], k[None, first_k:last_k], v[None, first_k:last_k])
        outputs.append(stand_in_func(*parts, **options)[0])
    return torch.cat(outputs)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    module = types.ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = stand_in_func, stand_in_varlen_func
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(flash, "compute_capability", lambda: (8, 0))


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("queries", [23, 9, 1])
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_flash_attn_computes_the_definition(name, queries, isolated, kv_heads):
    pattern = PATTERNS[name]()
    query, key, value = tensors(2, kv_heads, 23, queries=queries)
    positions = some_documents(23) if isolated else None
    output = FlashAttention(pattern)(query, key, value, scale=SCALE, dropout=0.0, positions=positions)
    expected = dense_attention(pattern, query, key, value, SCALE, positions)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_ends_of_documents_are_found_once_for_all_layers():
    positions = some_documents(23)
    first = flash._document_ends(positions, 23)
    assert flash._document_ends(positions, 23) is first
    assert first[0].tolist() == first[1].tolist() == [0, 7, 8, 23, 35, 46]
    assert flash._document_ends(positions, 20)[0].tolist() == [0, 4, 5, 20, 29, 40]
    other = torch.arange(23).repeat(2, 1)
    assert flash._document_ends(other, 23)[0].tolist() == [0, 23, 46]


def test_flash_attn_is_used_for_16_bit_runs_whose_pattern_it_knows():
    def chosen(pattern, demands):
        return isinstance(make_backend(pattern, demands), FlashAttention)

    half = Demands(64, torch.bfloat16)
    assert all(chosen(PATTERNS[name](), half) for name in ABLE)
    assert chosen(Pattern(), Demands(64, torch.float16, dropout=0.1, isolated=True))
    assert not chosen(Pattern(), Demands(64, torch.float32))
    assert not chosen(Pattern(), Demands(512, torch.bfloat16))
    assert not chosen(Pattern(), Demands(20, torch.bfloat16))
    assert not chosen(PATTERNS["relative bias"](), half)
    assert not chosen(Pattern(layout=random_layout(1)), half)


@pytest.mark.parametrize("capability", [(0, 0), (7, 5)], ids=["no GPU", "a GPU before Ampere"])
def test_flash_attn_is_not_used_without_a_fit_gpu_or_without_the_package(capability, monkeypatch):
    half = Demands(64, torch.bfloat16)
    assert FlashAttention.serves(Pattern(), half)
    with monkeypatch.context() as patched:
        patched.setattr(flash, "compute_capability", lambda: capability)
        assert not FlashAttention.serves(Pattern(), half)
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: None)
    assert not FlashAttention.serves(Pattern(), half)

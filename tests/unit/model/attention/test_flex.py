"""FlexAttention is told the pattern exactly. Its uncompiled form computes forward on a CPU; the kernels and their
gradients are tested in tests/gpu."""

import pytest
import torch

from megatron.model.attention import flex
from megatron.model.attention.backend import Demands, make_backend
from megatron.model.attention.flex import FlexAttention, touched_blocks
from megatron.model.attention.pattern import Pattern
from tests.unit.model.attention.reference import (
    PATTERNS,
    dense_attention,
    dense_mask,
    random_layout,
    some_documents,
    tensors,
)

CPU = torch.device("cpu")
SCALE = 0.3


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)


def patterns_of_16() -> list:
    """The patterns with blocks of 16 positions, which make a difference to the kernel's blocks of 128."""
    found = []
    for name, make in PATTERNS.items():
        pattern = make()
        if pattern.layout is not None:
            layout = random_layout(len(pattern.layout.heads), block=16)
            pattern = Pattern(pattern.window, layout, pattern.slopes, pattern.bias, pattern.bias_factor)
        found.append(pytest.param(pattern, id=name))
    return found


@pytest.mark.parametrize("pattern", patterns_of_16())
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("length", [37, 300])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_the_definition(pattern, isolated, length):
    positions = some_documents(length) if isolated else None
    query, key, value = tensors(2, 2, length)
    with torch.no_grad():
        output = FlexAttention(pattern)(query, key, value, scale=SCALE, dropout=0.0, positions=positions)
        expected = dense_attention(pattern, query, key, value, SCALE, positions)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", patterns_of_16())
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("length", [3, 300, 512])
def test_blocks_are_touched_where_anything_is_seen_and_whole_where_all_is(pattern, isolated, length):
    positions = some_documents(length) if isolated else None
    count = -(-length // flex.BLOCK)
    seen = dense_mask(pattern, length, positions)
    missing = count * flex.BLOCK - length
    padded = torch.nn.functional.pad(seen, (0, missing, 0, missing))
    blocks = padded.unflatten(3, (count, flex.BLOCK)).unflatten(2, (count, flex.BLOCK))
    expected_touched, expected_whole = blocks.any(5).any(3), blocks.all(5).all(3)
    touched, whole = (t.expand_as(expected_touched) for t in touched_blocks(pattern, length, CPU, positions))
    assert not (whole & ~touched).any()
    # The rows of the last block that are past the end do not count.
    assert torch.equal(whole[:, :, : count - 1], expected_whole[:, :, : count - 1]) or (
        isolated and pattern.layout is not None and not whole.any()
    )
    assert (touched | ~expected_touched).all()
    if pattern.layout is None or not (isolated or pattern.window):
        assert torch.equal(touched, expected_touched)


def test_a_block_mask_lists_the_touched_blocks_and_no_others():
    mask = flex.block_mask(Pattern(window=100), 512, CPU, None)
    # rows of 128 queries see their own block and the one before, neither as a whole
    assert mask.kv_num_blocks.flatten().tolist() == [1, 2, 2, 2]
    assert mask.full_kv_num_blocks.flatten().tolist() == [0, 0, 0, 0]
    assert mask.kv_indices[0, 0, 2, :2].sort().values.tolist() == [1, 2]
    causal = flex.block_mask(Pattern(), 512, CPU, None)
    assert causal.kv_num_blocks.flatten().tolist() == [1, 1, 1, 1]
    assert causal.full_kv_num_blocks.flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("queries", [1, 9])
def test_flex_continues_a_sequence(queries):
    for pattern in (Pattern(window=5), Pattern(layout=random_layout(4, block=16))):
        query, key, value = tensors(2, 2, 23, queries=queries)
        output = FlexAttention(pattern)(query, key, value, scale=SCALE, dropout=0.0)
        expected = dense_attention(pattern, query, key, value, SCALE)
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_mask_made_while_sampling_serves_training():
    attend = FlexAttention(Pattern(window=5))
    with torch.inference_mode():
        attend._block_mask(37, CPU, None)
    mask = attend._block_mask(37, CPU, None)
    assert not mask.kv_indices.is_inference()
    assert attend._block_mask(37, CPU, None) is mask
    assert attend._block_mask(40, CPU, None) is not mask


def test_flex_is_chosen_on_a_gpu_for_what_its_kernels_can_do(monkeypatch):
    monkeypatch.setattr(flex, "has_accelerator", lambda: True)
    half = Demands(64, torch.bfloat16)

    def chosen(pattern, demands=half):
        return type(make_backend(pattern, demands)).__name__

    assert chosen(Pattern(window=5)) == "FlexAttention"
    assert chosen(Pattern(layout=random_layout(1, block=16))) == "FlexAttention"
    assert chosen(Pattern(), Demands(64, torch.bfloat16, isolated=True)) == "FlexAttention"
    assert chosen(Pattern()) == "ScaledDotProductAttention"
    # no dropout, no tiny heads, no blocks that share nothing with the kernel's
    assert chosen(Pattern(window=5), Demands(64, torch.bfloat16, dropout=0.1)) == "BlockwiseAttention"
    assert chosen(Pattern(window=5), Demands(8, torch.bfloat16)) == "BlockwiseAttention"
    assert chosen(Pattern(layout=random_layout(1, block=4))) == "BlockwiseAttention"

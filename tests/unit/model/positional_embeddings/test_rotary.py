import pytest
import torch

from megatron.model.fused_rope import (
    FusedRoPEFunc,
    fused_apply_rotary_pos_emb,
    fused_apply_rotary_pos_emb_cached,
)
from megatron.model.positional_embeddings import (
    RotaryEmbedding,
    apply_rotary_pos_emb,
    rotate_half,
    split_and_rotate,
)
from megatron.model.positional_embeddings.frequencies import inverse_frequencies
from megatron.model.positional_embeddings.rotary import split_and_rotate_eager

COS = [
    [1.0, 1.0, 1.0, 1.0],
    [0.5403023, 0.9950042, 0.99995, 0.9999995],
    [-0.4161468, 0.9800666, 0.9998, 0.999998],
    [-0.9899925, 0.9553365, 0.99955, 0.9999955],
]
SIN = [
    [0.0, 0.0, 0.0, 0.0],
    [0.841471, 0.0998334, 0.0099998, 0.001],
    [0.9092974, 0.1986693, 0.0199987, 0.002],
    [0.14112, 0.2955202, 0.0299955, 0.003],
]


def rotate(x, position, dim):
    """x [d] at a position, its first dim features rotated."""
    cos, sin = RotaryEmbedding(dim, 8, precision=torch.float32)(x, seq_len=8)
    part = x[:dim].view(1, 1, 1, dim)
    rotated, _ = apply_rotary_pos_emb(part, part, cos, sin, offset=position)
    return torch.cat((rotated.view(-1), x[dim:]))


def test_golden_frequencies_and_tables():
    torch.testing.assert_close(inverse_frequencies(8, 10000), torch.tensor([1, 0.1, 0.01, 0.001]))
    cos, sin = RotaryEmbedding(8, 4, precision=torch.float32)(torch.empty(4, 1, 1, 8))
    assert cos.shape == sin.shape == (4, 1, 1, 8)
    for table, golden in ((cos, COS), (sin, SIN)):
        expected = torch.tensor(golden).repeat(1, 2)
        torch.testing.assert_close(table.view(4, 8), expected, rtol=0, atol=1e-6)


def test_golden_rotations():
    full = torch.tensor([-1.695593, 0.137552, 2.788682, 3.975982, -4.808842, 6.323059, 7.086837, 8.011964])
    torch.testing.assert_close(rotate(torch.arange(1.0, 9.0), 3, 8), full, rtol=0, atol=1e-5)
    partial = torch.cat((torch.tensor([-3.144039, 1.919605, -0.339143, 4.039197]), torch.arange(5.0, 17.0)))
    torch.testing.assert_close(rotate(torch.arange(1.0, 17.0), 2, 4), partial, rtol=0, atol=1e-5)


def test_the_table_grows_when_a_longer_one_is_asked_for():
    rotary = RotaryEmbedding(8, 4, precision=torch.float32)
    short, _ = rotary(torch.empty(4, 1, 1, 8))
    long, _ = rotary(torch.empty(50, 1, 1, 8))
    assert long.shape[0] == 50
    assert torch.equal(long[:4], short)
    fresh, _ = RotaryEmbedding(8, 50, precision=torch.float32)(torch.empty(50, 1, 1, 8))
    assert torch.equal(long, fresh)


def test_a_table_made_in_inference_mode_serves_training():
    rotary = RotaryEmbedding(12, 7, base=777, precision=torch.float32)
    with torch.inference_mode():
        rotary(torch.empty(7, 1, 1, 12))
    cos, sin = rotary(torch.empty(7, 1, 1, 12))
    q = torch.randn(7, 1, 1, 12, requires_grad=True)
    rotated, _ = apply_rotary_pos_emb(q, q, cos, sin)
    rotated.sum().backward()
    assert q.grad is not None


def test_saved_frequencies_are_a_buffer_and_do_not_limit_precision():
    rotary = RotaryEmbedding(8, 4, precision=torch.float32, save_inv_freqs=True).half()
    assert list(rotary.state_dict()) == ["inv_freq"]
    assert list(RotaryEmbedding(8, 4).state_dict()) == []
    cos, _ = rotary(torch.empty(4, 1, 1, 8))
    torch.testing.assert_close(cos[3, 0, 0, :4], torch.tensor(COS[3]), rtol=0, atol=1e-6)


def split_interleaved(qkv):
    return qkv.unflatten(-1, (3, 3, 8)).unbind(-2)


def split_grouped(qkv):
    return qkv.unflatten(-1, (9, 8)).split((5, 2, 2), -2)


@pytest.mark.parametrize("split", [split_interleaved, split_grouped])
@pytest.mark.parametrize("rotated", [4, 8])
def test_fused_split_and_rotation_equals_its_eager_twin(split, rotated):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(6, 2, 72, generator=generator, dtype=torch.double, requires_grad=True)
    rotary = RotaryEmbedding(rotated, 10, precision=torch.double)
    cos, sin = rotary.half_tables(10, torch.double, qkv.device)

    def eager(qkv):
        return split_and_rotate_eager(qkv, split, cos[3:9], sin[3:9])

    def fused(qkv):
        return split_and_rotate(qkv, split, cos[3:9], sin[3:9])

    gradients = []
    for function in (eager, fused):
        outputs = function(qkv)
        weights = torch.Generator().manual_seed(1)
        loss = sum((part * torch.rand(part.shape, generator=weights)).sum() for part in outputs)
        gradients.append(torch.autograd.grad(loss, qkv)[0])
    for one, other in zip(eager(qkv), fused(qkv), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(*gradients)


def test_rotate_half_swaps_halves():
    assert rotate_half(torch.tensor([1.0, 2, 3, 4])).tolist() == [-3, -4, 1, 2]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_names_of_the_fused_kernel_turn_as_the_plain_form_does(transposed):
    t = torch.randn(6, 2, 3, 8, requires_grad=True)
    angles = torch.outer(torch.arange(6.0), inverse_frequencies(4, 10000)).repeat(1, 2)[:, None, None]
    cos, sin = angles.cos(), angles.sin()
    turned, _ = apply_rotary_pos_emb(t[..., :4], t[..., :4], cos, sin)
    expected = torch.cat((turned, t[..., 4:]), -1)
    weights = torch.randn_like(expected)
    gradient = torch.autograd.grad(expected, t, weights)[0]
    for found in (
        fused_apply_rotary_pos_emb(t, angles, transposed),
        fused_apply_rotary_pos_emb_cached(t, cos, sin, transposed),
        FusedRoPEFunc.apply(t, angles, transposed),
    ):
        torch.testing.assert_close(found, expected)
        assert found.transpose(0, 1).is_contiguous() == transposed
        torch.testing.assert_close(torch.autograd.grad(found, t, weights)[0], gradient)

"""The chunked recurrence is the recurrence."""

import pytest
import torch

from megatron.model.rwkv.recurrence import CHUNK, wkv6


def token_by_token(r, k, v, w, u, state=None, positions=None):
    """The definition."""
    batch, length, heads, size = r.shape
    state = r.new_zeros(batch, heads, size, size) if state is None else state
    outputs = []
    for t in range(length):
        if positions is not None:
            state = state * (positions[:, t] != 0)[:, None, None, None]
        outer = k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        seen = state + u.unsqueeze(-1) * outer
        outputs.append((r[:, t].unsqueeze(-2) @ seen).squeeze(-2))
        state = w[:, t].exp().unsqueeze(-1) * state + outer
    return torch.stack(outputs, 1), state


def inputs(length, batch=2, heads=3, size=5, decay=1.0):
    """fp64."""
    generator = torch.Generator().manual_seed(length)
    r, k, v, raw = (
        torch.randn(batch, length, heads, size, generator=generator, dtype=torch.double) for _ in range(4)
    )
    return r, k, v, -torch.exp(decay * raw), torch.randn(heads, size, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_chunks_give_what_the_definition_gives(length):
    arguments = inputs(length)
    y, state = wkv6(*arguments)
    expected, expected_state = token_by_token(*arguments)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)


def test_strong_decay_neither_overflows_nor_loses_the_present():
    arguments = inputs(40, decay=4.0)
    y, _ = wkv6(*arguments)
    torch.testing.assert_close(y, token_by_token(*arguments)[0])


@pytest.mark.parametrize("cut", [1, CHUNK, 21])
def test_a_sequence_in_two_calls_is_one_sequence(cut):
    *arguments, u = inputs(37)
    whole, last = wkv6(*arguments, u)
    first, state = wkv6(*(tensor[:, :cut] for tensor in arguments), u)
    second, end = wkv6(*(tensor[:, cut:] for tensor in arguments), u, state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(end, last)


def test_a_document_sees_nothing_of_the_one_before():
    arguments = inputs(50)
    starts = torch.zeros(2, 50, dtype=torch.bool)
    starts[0, [7, 8, CHUNK]] = starts[1, [0, 30, 49]] = True
    positions = torch.where(starts, 0, 1)
    y, state = wkv6(*arguments, positions=positions)
    expected, expected_state = token_by_token(*arguments, positions=positions)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)


def test_gradients_are_those_of_the_definition():
    arguments = [tensor.requires_grad_() for tensor in inputs(20, batch=1, heads=2, size=3)]
    weights = torch.randn(1, 20, 2, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((wkv6(*arguments)[0] * weights).sum(), arguments)
    expected = torch.autograd.grad((token_by_token(*arguments)[0] * weights).sum(), arguments)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)

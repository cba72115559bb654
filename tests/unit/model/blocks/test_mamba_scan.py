"""The selective scan against the recurrence written out, in whatever pieces it is computed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.model.blocks.mamba_scan import Stretches, choose_stretches, selective_scan

POSITIONS, BATCH, CHANNELS, STATES = 37, 2, 5, 4


def written_out(x, delta, A, B, C, state, restart):
    """One position after the other."""
    outputs = []
    for t in range(len(x)):
        decay = torch.exp(delta[t].unsqueeze(-1) * A) * ~restart[t, :, None, None]
        state = decay * state + (delta[t] * x[t]).unsqueeze(-1) * B[t].unsqueeze(1)
        outputs.append((state * C[t].unsqueeze(1)).sum(-1))
    return torch.stack(outputs), state


def inputs(positions=POSITIONS, dtype=torch.double):
    """(x, delta, A, B, C) with gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    values = (
        draw(positions, BATCH, CHANNELS),
        draw(positions, BATCH, CHANNELS).abs(),
        -3 * draw(CHANNELS, STATES).abs(),
        draw(positions, BATCH, STATES),
        draw(positions, BATCH, STATES),
    )
    return [value.requires_grad_() for value in values]


# (length, block): one stretch; stretches with a rest; single positions; blocks with and without a rest
@pytest.mark.parametrize("stretches", [(37, 37), (10, 10), (1, 1), (37, 6), (10, 3), (3, 1), (37, 36)])
def test_outputs_last_state_and_gradients_are_those_of_the_recurrence(stretches):
    values = inputs()
    state = torch.randn(BATCH, CHANNELS, STATES, dtype=torch.double)
    restart = torch.arange(POSITIONS * BATCH).view(POSITIONS, BATCH) % 11 == 3
    expected, expected_state = written_out(*values, state, restart)
    output, last = selective_scan(*values, state, restart, Stretches(*stretches))
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected_state, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(expected)
    found = torch.autograd.grad(output, values, gradient)
    for own, other in zip(found, torch.autograd.grad(expected, values, gradient), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)


def test_pieces_of_a_sequence_continue_from_the_state_before():
    values = inputs()
    whole, _ = selective_scan(*values)
    x, delta, A, B, C = values
    state, outputs = None, []
    for span in (slice(0, 20), slice(20, 21), slice(21, POSITIONS)):
        output, state = selective_scan(x[span], delta[span], A, B[span], C[span], state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs), whole, rtol=1e-12, atol=1e-12)


def test_strong_decay_over_long_sequences_stays_finite():
    x, delta, A, B, C = (value.detach().float() for value in inputs(positions=3000))
    values = [value.requires_grad_() for value in (x, delta * 40, A * 40, B, C)]
    output, _ = selective_scan(*values, stretches=Stretches(1000, 31))
    gradients = torch.autograd.grad(output.square().sum(), values)
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_half_precision_is_computed_in_fp32():
    values = [value.detach().bfloat16() for value in inputs()]
    output, state = selective_scan(*values)
    expected, _ = selective_scan(*(value.float() for value in values))
    assert output.dtype == state.dtype == torch.float32
    torch.testing.assert_close(output, expected)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_the_states_of_the_whole_sequence_never_exist():
    values = inputs(positions=400)
    with LargestTensor() as largest:
        output, _ = selective_scan(*values, stretches=Stretches(20, 20))
        output.sum().backward()
    assert largest.numel <= 400 * BATCH * CHANNELS < 400 * BATCH * CHANNELS * STATES


@pytest.mark.parametrize("on_cpu", [True, False])
def test_stretches_fit_the_sequence_and_the_memory(on_cpu):
    assert choose_stretches(7, 10, on_cpu).length == 7
    assert choose_stretches(7, 2**40, on_cpu) == (1, 1)
    length, block = choose_stretches(2**20, 2**15, on_cpu)
    assert 1 < length < 2**20
    assert (block == length) == on_cpu

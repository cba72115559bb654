"""The selective scan of Mamba (arXiv 2312.00752, equation 2 and section 3.3) in plain torch.

Legend: s sequence, b batch, d channels, n states of each channel.

    state_t = exp(delta_t A) state_(t-1) + delta_t x_t B_t      [b, d, n]
    y_t     = state_t C_t                                       [b, d]

The states of all positions would be n times as large as an activation, so they exist for a stretch of the sequence at
a time, and the backward pass makes them again from the state in which the stretch began. Decays are only multiplied
with one another, never divided by, so nothing overflows however long the sequence is.
"""

import math
from typing import NamedTuple

import torch

# Numbers in the states of a stretch: what a processor's caches hold, and what keeps a GPU busy.
CPU_STRETCH = 2**20
GPU_STRETCH = 2**25


class Stretches(NamedTuple):
    """How a scan is cut. length: positions whose states exist at a time; block: neighbouring positions that are walked
    one by one, all blocks of a stretch side by side (the length of the stretch: no blocks)."""

    length: int
    block: int


def choose_stretches(positions: int, numbers_per_position: int, on_cpu: bool) -> Stretches:
    """On a CPU a step over all channels is work enough. A GPU waits for kernels to start; blocks need fewer of them."""
    length = (CPU_STRETCH if on_cpu else GPU_STRETCH) // max(1, numbers_per_position)
    length = min(max(1, length), max(1, positions))
    return Stretches(length, length if on_cpu else math.isqrt(length))


def selective_scan(
    x: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor | None = None,
    restart: torch.Tensor | None = None,
    stretches: Stretches | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and the last state; computed and returned in fp32, or fp64 if x is.

    Args:
        x, delta: [s, b, d]; delta is positive.
        A: [d, n], negative. B, C: [s, b, n].
        state: [b, d, n] before the first position, None for zeros; gets no gradient.
        restart: bool [s, b], positions which forget what came before.
    Returns: (y [s, b, d], state [b, d, n] after the last position, without gradient).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    positions, batch, channels = x.shape
    if state is None:
        state = x.new_zeros(batch, channels, A.shape[1], dtype=dtype)
    if stretches is None:
        stretches = choose_stretches(positions, state.numel(), x.device.type == "cpu")
    return _SelectiveScan.apply(x, delta, A, B, C, state, restart, stretches)


def _spans(positions: int, length: int) -> list[slice]:
    return [slice(start, start + length) for start in range(0, positions, length)]


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, delta, A, B, C, state, restart, stretches):
        dtype = state.dtype
        spans = _spans(len(x), stretches.length)
        starts = state.new_empty(len(spans), *state.shape)
        y = x.new_empty(x.shape, dtype=dtype)
        for number, span in enumerate(spans):
            starts[number] = state
            part = _Part.cut(x, delta, A, B, C, restart, span, dtype)
            _, states = part.states(state, stretches.block)
            y[span] = (states @ part.C.unsqueeze(-1)).squeeze(-1)
            state = states[-1]
        state = state.clone()
        ctx.save_for_backward(x, delta, A, B, C, starts)
        ctx.restart, ctx.stretches = restart, stretches
        ctx.mark_non_differentiable(state)
        return y, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y, _):
        x, delta, A, B, C, starts = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (x, delta, B, C)]
        grad_A = torch.zeros_like(A, dtype=starts.dtype)
        carry = torch.zeros_like(starts[0])
        spans = _spans(len(x), ctx.stretches.length)
        for number, span in reversed(list(enumerate(spans))):
            part = _Part.cut(x, delta, A, B, C, ctx.restart, span, starts.dtype)
            *local, own_A, carry = part.backward(grad_y[span], starts[number], carry, ctx.stretches.block)
            for whole, piece in zip(grads, local, strict=True):
                whole[span] = piece
            grad_A += own_A
        grad_x, grad_delta, grad_B, grad_C = grads
        return grad_x, grad_delta, grad_A.to(A.dtype), grad_B, grad_C, None, None, None


class _Part(NamedTuple):
    """The inputs of a stretch, in the dtype of the states."""

    x: torch.Tensor
    delta: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    restart: torch.Tensor | None

    @classmethod
    def cut(cls, x, delta, A, B, C, restart, span: slice, dtype: torch.dtype) -> "_Part":
        x, delta, B, C = (tensor[span].to(dtype) for tensor in (x, delta, B, C))
        return cls(x, delta, A.to(dtype), B, C, None if restart is None else restart[span])

    def states(self, start: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(decays, states), [s, b, d, n] each."""
        decays = (self.delta.unsqueeze(-1) * self.A).exp_()
        if self.restart is not None:
            decays.masked_fill_(self.restart[..., None, None], 0.0)
        states = (self.delta * self.x).unsqueeze(-1) * self.B.unsqueeze(-2)
        states[0].addcmul_(decays[0], start)
        recur_(states, decays[1:], block)
        return decays, states

    def backward(
        self, grad_y: torch.Tensor, start: torch.Tensor, carry: torch.Tensor, block: int
    ) -> tuple[torch.Tensor, ...]:
        """Gradients of x, delta, B, C, A, and of the state before the stretch.

        carry: gradient of the state after it.
        """
        decays, states = self.states(start, block)
        grad_C = (grad_y.unsqueeze(-2) @ states).squeeze(-2)
        grad = grad_y.unsqueeze(-1) * self.C.unsqueeze(-2)  # of the states
        grad[-1] += carry
        recur_(grad, decays[1:], block, backwards=True)
        grad_B = ((self.delta * self.x).unsqueeze(-2) @ grad).squeeze(-2)
        grad_inflow = (grad @ self.B.unsqueeze(-1)).squeeze(-1)
        grad *= decays
        grad_start = grad[0].clone()
        # A decay is exp(delta A), so its gradient times itself is that of delta A.
        grad[0] *= start
        grad[1:] *= states[:-1]
        grad_delta = grad_inflow * self.x + (grad * self.A).sum(-1)
        grad_A = (grad * self.delta.unsqueeze(-1)).sum((0, 1))
        return grad_inflow * self.delta, grad_delta, grad_B, grad_C, grad_A, grad_start


def recur_(values: torch.Tensor, links: torch.Tensor, block: int, backwards: bool = False) -> None:
    """values[t+1] += links[t] * values[t] for all t in turn, in place; backwards, values[t] += links[t] * values[t+1].

    Args: values: [s, ...]; links: [s-1, ...], between 0 and 1; block: see Stretches.
    """
    count = len(values)
    if block >= count:
        for t in range(count - 1):
            earlier, later = (count - 1 - t, count - 2 - t) if backwards else (t, t + 1)
            values[later].addcmul_(links[min(earlier, later)], values[earlier])
    elif backwards:
        flipped = values.flip(0)
        recur_(flipped, links.flip(0), block)
        values.copy_(flipped.flip(0))
    else:
        _recur_in_blocks_(values, links, block)


def _recur_in_blocks_(values: torch.Tensor, links: torch.Tensor, block: int) -> None:
    """recur_ in three movements: within all blocks at once, from block to block, and what is left over at the end."""
    blocks = (len(values) - 1) // block
    # The first value stands before the first block.
    within, factors = (part[: blocks * block].unflatten(0, (blocks, block)) for part in (values[1:], links))
    for t in range(1, block):
        within[:, t].addcmul_(factors[:, t], within[:, t - 1])
    since_start = factors.cumprod(1)
    before = values[0]
    for number in range(blocks):
        within[number].addcmul_(since_start[number], before)
        before = within[number, -1]
    for t in range(blocks * block, len(values) - 1):
        values[t + 1].addcmul_(links[t], values[t])

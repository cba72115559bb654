"""The recurrence of RWKV v6 (arXiv 2404.05892): by a kernel where there is one, else chunked, parallel inside a chunk
with one state from chunk to chunk.

Legend: b batch, s sequence, n heads, d head size, c chunk length. Per head, with a state S [d, d]:

    y_t = r_t^T (S + diag(u) k_t v_t^T),   S <- diag(exp(w_t)) S + k_t v_t^T,   w_t < 0
"""

import torch
import torch.nn.functional as F

from megatron.model.rwkv import kernel

CHUNK = 16  # positions; the pairwise decays of a chunk take c times the memory of the keys


def wkv6(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    state: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All positions of a sequence.

    Args:
        r, k, v: [b, s, n, d]; w: logarithm of the decay, same shape; u: bonus of the current position [n, d].
        state: what a former call left, [b, n, d, d], for the positions before these; None for none.
        positions: int [b, s], positions inside documents; the state is forgotten where one is 0. None: one document.
    Returns: (y [b, s, n, d], state [b, n, d, d]), fp32 or wider.
    """
    if state is None:
        state = r.new_zeros(r.shape[0], r.shape[2], r.shape[3], v.shape[3], dtype=_precise(r).dtype)
    if positions is None and kernel.usable(r):
        return kernel.WKV6.apply(*(tensor.float() for tensor in (r, k, v, w, u, state)))
    return _chunked(r, k, v, w, u, state, positions)


def _chunked(r, k, v, w, u, state, positions) -> tuple[torch.Tensor, torch.Tensor]:
    """wkv6 in plain torch."""
    length, step = r.shape[1], min(CHUNK, r.shape[1])
    r, k, v, w = (_chunks(_precise(tensor), step) for tensor in (r, k, v, w))
    # Inclusive and exclusive sums of log decays; differences of the two are never above 0, so nothing overflows.
    through = w.cumsum(3)
    before = through - w
    documents = _documents(positions, step)
    y = _inside_chunks(r, k, v, through, before, _precise(u), documents)
    parts = []
    for chunk in range(r.shape[1]):
        document = None if documents is None else documents[:, chunk]
        enters, leaves, survives = _weights(through[:, chunk], before[:, chunk], document)
        parts.append((r[:, chunk] * enters) @ state)
        state = survives.unsqueeze(-1) * state + (k[:, chunk] * leaves).transpose(-1, -2) @ v[:, chunk]
    y = y + torch.stack(parts, 1)
    return y.transpose(2, 3).flatten(1, 2)[:, :length], state


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunks(tensor: torch.Tensor, step: int) -> torch.Tensor:
    """[b, s, n, d] -> [b, s/c, n, c, d]; what is filled up has no key and no decay, so it leaves the state alone."""
    padding = -tensor.shape[1] % step
    return F.pad(tensor, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, step)).transpose(2, 3)


def _documents(positions: torch.Tensor | None, step: int) -> torch.Tensor | None:
    """[b, s] -> number of documents begun in the chunk up to each position, [b, s/c, c]; 0 continues the last chunk."""
    if positions is None:
        return None
    begins = F.pad((positions == 0).int(), (0, -positions.shape[1] % step))
    return begins.unflatten(1, (-1, step)).cumsum(2)


def _inside_chunks(r, k, v, through, before, u, documents) -> torch.Tensor:
    """What positions get of earlier ones of their chunk and of themselves, [b, s/c, n, c, d]."""
    step = r.shape[3]
    earlier = torch.ones(step, step, dtype=torch.bool, device=r.device).tril(-1)
    if documents is not None:
        same = documents.unsqueeze(-1) == documents.unsqueeze(-2)
        earlier = (earlier & same)[:, :, None]  # one mask for all heads
    decay = before.unsqueeze(4) - through.unsqueeze(3)  # [b, s/c, n, c, c, d]
    decay = decay.masked_fill(~earlier.unsqueeze(-1), -torch.inf).exp()
    scores = torch.einsum("bmntd,bmnid,bmntid->bmnti", r, k, decay)
    itself = (r * u[None, None, :, None] * k).sum(-1, keepdim=True)
    return scores @ v + itself * v


def _weights(through, before, document) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one chunk: how much of the incoming state each position sees [b, n, c, d], how much of each key the outgoing
    state keeps [b, n, c, d], and how much of the incoming state it keeps [b, n, d]."""
    last = through[:, :, -1]
    enters, leaves, survives = before.exp(), (last.unsqueeze(2) - through).exp(), last.exp()
    if document is None:
        return enters, leaves, survives
    continued, current = document == 0, document == document[:, -1:]
    enters = enters * continued[:, None, :, None]
    leaves = leaves * current[:, None, :, None]
    return enters, leaves, survives * continued[:, -1, None, None]

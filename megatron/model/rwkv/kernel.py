"""The recurrence of RWKV v6 by a kernel that walks through time, with its gradients.

Gradients of a linear recurrence are linear recurrences, forwards or backwards in time, so one scan serves all of them:

    out_t = q_t^T S  (or S q_t, rows),   then   S <- diag(exp(w_t)) S + k_t v_t^T

Legend: b batch, s sequence, n heads, d head size.
"""

import ctypes

import torch

from megatron import fused_kernels
from megatron.common.errors import LaunchError

SIZES = (8, 16, 32, 64, 128)


def usable(r: torch.Tensor) -> bool:
    """Whether the kernel can serve tensors like r [b, s, n, d]; it computes in fp32."""
    return (
        r.is_cuda and r.shape[-1] in SIZES and r.dtype != torch.float64 and fused_kernels.load() is not None
    )


def scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    state: torch.Tensor,
    rows: bool = False,
    backwards: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [b, s, n, d], state after the last step) of the recurrence, by the kernel.

    Args: q, k, v, w: fp32 [b, s, n, d]; state: fp32 [b, n, d, d]; backwards: from the last step to the first.
    Raises: LaunchError with CUDA's number if the kernel could not be started.
    """
    library = fused_kernels.load()
    inputs = [tensor.contiguous() for tensor in (q, k, v, w, state)]
    out, last = torch.empty_like(inputs[0]), torch.empty_like(inputs[4])
    batch, length, heads, size = q.shape
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*inputs, out, last)]
    stream = ctypes.c_void_p(torch.cuda.current_stream(q.device).cuda_stream)
    with torch.cuda.device(q.device):
        failure = library.wkv6_scan(int(rows), int(backwards), batch, length, heads, size, *pointers, stream)
    if failure:
        raise LaunchError(
            f"the kernel of RWKV's recurrence did not start (CUDA error {failure}, head size {size})"
        )
    return out, last


class WKV6(torch.autograd.Function):
    """wkv6 of megatron.model.rwkv.recurrence without documents; all arguments fp32.

    The gradient by w_m is a sum over pairs (key s, query t) with s < m < t: all pairs with t > m, less those with
    s >= m. What queries and keys have in their gradients are just the sums over their pairs. The states that come in
    and go out stand for a key before all queries and a query behind all keys.
    """

    run = staticmethod(scan)

    @staticmethod
    def forward(ctx, r, k, v, w, u, state):
        y, last = WKV6.run(r, k, v, w, state)
        ctx.save_for_backward(r, k, v, w, u, state, last)
        return y + (r * u * k).sum(-1, keepdim=True) * v, last

    @staticmethod
    def backward(ctx, grad_y, grad_last):
        r, k, v, w, u, state, last = ctx.saved_tensors
        grad_last = torch.zeros_like(last) if grad_last is None else grad_last
        grad_r, _ = WKV6.run(grad_y, k, v, w, state, rows=True)
        grad_k, grad_state = WKV6.run(v, r, grad_y, w, grad_last, rows=True, backwards=True)
        grad_v, _ = WKV6.run(k, r, grad_y, w, grad_last, backwards=True)
        of_queries = (r * grad_r).flip(1).cumsum(1).flip(1) - r * grad_r
        of_keys = (k * grad_k).flip(1).cumsum(1).flip(1)
        grad_w = (grad_last * last).sum(-1).unsqueeze(1) + of_queries - of_keys
        # What every position gets of itself.
        seen = (grad_y * v).sum(-1, keepdim=True)
        grad_u = (r * k * seen).sum((0, 1))
        grad_v = grad_v + (r * u * k).sum(-1, keepdim=True) * grad_y
        return grad_r + u * k * seen, grad_k + u * r * seen, grad_v, grad_w, grad_u, grad_state

"""RWKV's kernel against the recurrence in plain torch, forward and backward."""

import pytest
import torch

from megatron.model.rwkv import kernel
from megatron.model.rwkv.recurrence import _chunked


@pytest.mark.parametrize("size", kernel.SIZES)
@pytest.mark.parametrize("length", [1, 33])
def test_the_kernel_equals_plain_torch(size, length):
    generator = torch.Generator("cuda").manual_seed(size)
    shape = (2, length, 3, size)
    r, k, v, raw = (torch.randn(shape, generator=generator, device="cuda") for _ in range(4))
    u = torch.randn(3, size, generator=generator, device="cuda")
    state = torch.randn(2, 3, size, size, generator=generator, device="cuda")
    arguments = [tensor.requires_grad_() for tensor in (r, k, v, -raw.exp(), u, state)]
    assert kernel.usable(r)
    results = []
    for compute in (kernel.WKV6.apply, lambda *tensors: _chunked(*tensors, None)):
        y, last = compute(*arguments)
        results.append([y, last, *torch.autograd.grad(y.square().sum() + last.sum(), arguments)])
    for found, expected in zip(*results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=1e-3, atol=1e-4)

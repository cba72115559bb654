"""Torch's grouped kernel does for experts what the loop over them does."""

import pytest
import torch

from megatron import mpu
from megatron.model.moe import experts as module
from megatron.mpu.state import Axis, ParallelState
from tests.unit.model.moe.test_experts import draw, make


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_kernel_equals_the_loop(activation, ranks, monkeypatch):
    with mpu.use(ParallelState(tensor=Axis(ranks=tuple(range(ranks)), rank=ranks - 1))):
        mlp = make(activation, model_parallel_size=ranks).to("cuda", torch.bfloat16)
    tokens, weights, chosen = (tensor.cuda() for tensor in draw())
    inputs = [tokens.bfloat16().requires_grad_(), weights.requires_grad_(), *mlp.parameters()]
    assert module.has_kernel(inputs[0], 24, 32)
    results = []
    for kernel in (True, False):
        monkeypatch.setattr(module, "has_kernel", lambda *_, kernel=kernel: kernel)
        output = mlp(inputs[0], weights, chosen)
        coefficients = torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output)
        results.append([output, *torch.autograd.grad((output * coefficients).sum(), inputs)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own.float(), expected.float(), rtol=2e-2, atol=2e-2)

"""Gates and norms on a GPU, where other kernels compute them, equal their formulas."""

import pytest
import torch

from megatron.model.activations.gated import GATES, gated, gated_eager
from megatron.model.norms import RMSNorm, ScaleNorm

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", GATES)
def test_a_fused_gate_equals_its_plain_twin(name, dtype):
    both = torch.randn(64, 512, device="cuda", dtype=dtype, requires_grad=True)
    weights = torch.randn(64, 256, device="cuda", dtype=dtype)
    found, expected = (
        torch.autograd.grad(output, both, weights)[0]
        for output in (gated(both, GATES[name]), gated_eager(both, GATES[name].activate))
    )
    torch.testing.assert_close(found, expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("norm", [RMSNorm, ScaleNorm])
def test_a_norm_equals_that_of_the_cpu(norm, dtype):
    module = norm(512, eps=1e-6)
    torch.nn.init.normal_(next(module.parameters()))
    x = torch.randn(64, 512)
    expected = module(x)
    found = module.to("cuda", dtype)(x.to("cuda", dtype))
    torch.testing.assert_close(found.float().cpu(), expected, rtol=2 * CLOSE[dtype], atol=2 * CLOSE[dtype])

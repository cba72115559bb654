"""The selective scan and the whole Mamba block on a GPU, with and without the packages' kernels."""

import pytest
import torch

from megatron.model import build_sequential
from megatron.model.blocks.mamba_scan import selective_scan
from tests.common.models import model_args, randomize

PACKAGES = {
    "mamba_causal_conv_fusion": "causal_conv1d",
    "mamba_selective_scan_fusion": "mamba_ssm",
    "mamba_inner_func_fusion": "mamba_ssm",
}


def test_the_scan_equals_the_cpus():
    generator = torch.Generator().manual_seed(0)
    positions, batch, channels, states = 700, 2, 64, 16
    values = [
        torch.randn(positions, batch, channels, generator=generator),
        torch.rand(positions, batch, channels, generator=generator),
        -torch.arange(1.0, 17.0).repeat(channels, 1),
        torch.randn(positions, batch, states, generator=generator),
        torch.randn(positions, batch, states, generator=generator),
    ]
    gradient = torch.randn(positions, batch, channels, generator=generator)
    found = []
    for place in ("cpu", "cuda"):
        inputs = [value.to(place).requires_grad_() for value in values]
        output, state = selective_scan(*inputs)
        gradients = torch.autograd.grad(output, inputs, gradient.to(place))
        found.append([tensor.cpu() for tensor in (output, state, *gradients)])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("key", PACKAGES)
def test_the_kernels_compute_what_torch_computes(key):
    pytest.importorskip(PACKAGES[key], reason=f"needs the package {PACKAGES[key]}")
    results = []
    for fused in (False, True):
        args = model_args(
            attention_config=[[["mamba"], "all"]],
            hidden_size=64,
            seq_length=64,
            max_position_embeddings=64,
            **{key: fused},
        )
        model = build_sequential(args)
        randomize(model)
        mixer = model.sequential[2].mixer.to("cuda")
        hidden = torch.randn(64, 2, 64, generator=torch.Generator().manual_seed(0)).to("cuda")
        output, _ = mixer(hidden)
        output.square().mean().backward()
        results.append([output, *(parameter.grad for parameter in mixer.parameters())])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-3)

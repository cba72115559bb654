"""On a GPU every back-end computes every pattern that it serves as the definition does, gradients included."""

import dataclasses

import pytest
import torch

from megatron.model.attention.backend import Demands
from megatron.model.attention.pattern import Pattern
from megatron.registry import lookup
from tests.unit.model.attention.reference import (
    PATTERNS,
    dense_attention,
    random_layout,
    some_documents,
    tensors,
)

SCALE = 0.2


def pattern_of_16(name: str, device: str) -> Pattern:
    """A pattern, with blocks of 16 positions, its parameters on a device."""
    pattern = PATTERNS[name]()
    if pattern.layout is not None:
        pattern = dataclasses.replace(pattern, layout=random_layout(len(pattern.layout.heads), block=16))
    if isinstance(pattern.bias, torch.nn.Module):
        pattern.bias.to(device)
    return pattern


def run(attend, pattern, inputs, positions, **options) -> list[torch.Tensor]:
    """Output and gradients, fp64 on the CPU."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(*inputs, scale=SCALE, positions=positions, **options)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output)
    (output * weights).sum().backward()
    learned = [parameter.grad for parameter in getattr(pattern.bias, "parameters", list)()]
    return [t.detach().double().cpu() for t in (output, *(i.grad for i in inputs), *learned)]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "flash_attn", "flex", "blockwise"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-3), (torch.bfloat16, 3e-2)])
def test_a_back_end_equals_the_definition(name, isolated, backend, dtype, tolerance):
    pattern = pattern_of_16(name, "cuda")
    demands = Demands(64, dtype, isolated=isolated)
    kind = lookup("attention back-end", backend)
    if backend == "flash_attn":
        pytest.importorskip("flash_attn", reason="needs the flash-attn package")
    if not kind.serves(pattern, demands):
        # Whether it should is tested without a GPU; here nothing remains but that another one does.
        assert lookup("attention back-end", "blockwise").serves(pattern, demands)
        return
    torch._dynamo.reset()  # a process keeps a limited number of compiled forms
    inputs = [tensor.to(dtype) for tensor in tensors(2, 2, 300, size=64)]
    positions = some_documents(300) if isolated else None
    found = run(
        kind(pattern),
        pattern,
        [tensor.cuda() for tensor in inputs],
        None if positions is None else positions.cuda(),
        dropout=0.0,
    )
    reference = pattern_of_16(name, "cpu")

    def definition(query, key, value, scale, positions):
        return dense_attention(reference, query, key, value, scale, positions)

    expected = run(definition, reference, [tensor.double() for tensor in inputs], positions)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize("length", [4096, 16384])
def test_flex_needs_no_memory_for_all_scores(length):
    torch._dynamo.reset()
    pattern = Pattern(layout=random_layout(1, block=16), window=256)
    inputs = [tensor.cuda().bfloat16().requires_grad_() for tensor in tensors(1, 4, length, size=64)]
    attend = lookup("attention back-end", "flex")(pattern)
    attend(*inputs, scale=SCALE, dropout=0.0).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(*inputs, scale=SCALE, dropout=0.0).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 4 * length * length / 2


def test_no_back_end_falls_back_when_lengths_change():
    torch._dynamo.reset()
    pattern = Pattern(window=100)
    attend = lookup("attention back-end", "flex")(pattern)
    for length in (128, 300, 301, 512, 777, 1024, 1300, 1500, 1800, 2048):
        inputs = [tensor.cuda() for tensor in tensors(1, 2, length, size=64)]
        output = attend(*inputs, scale=SCALE, dropout=0.0)
        expected = dense_attention(pattern, *(tensor.cpu() for tensor in inputs), SCALE)
        assert relative_error(output.double().cpu(), expected) < 5e-3

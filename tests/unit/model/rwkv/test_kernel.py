"""RWKV's kernel: its gradients, with its scan in plain torch; its source, played by host threads; its compilation."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from megatron import fused_kernels
from megatron.common.errors import LaunchError
from megatron.model.rwkv.kernel import WKV6
from megatron.model.rwkv.recurrence import wkv6
from tests.unit.model.rwkv.test_recurrence import inputs


def plain_scan(q, k, v, w, state, rows=False, backwards=False):
    """What the kernel computes, step by step."""
    out = torch.empty_like(q)
    steps = range(q.shape[1])
    for t in reversed(steps) if backwards else steps:
        out[:, t] = torch.einsum("bnij,bnj->bni" if rows else "bnij,bni->bnj", state, q[:, t])
        state = w[:, t].exp().unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
    return out, state


def test_scans_give_the_recurrence_and_all_its_gradients(monkeypatch):
    monkeypatch.setattr(WKV6, "run", staticmethod(plain_scan))
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(2, 3, 5, 5, dtype=torch.double, generator=generator)
    arguments = [tensor.requires_grad_() for tensor in (*inputs(19), state)]
    found, expected = WKV6.apply(*arguments), wkv6(*arguments)
    weights = [torch.randn(tensor.shape, dtype=torch.double, generator=generator) for tensor in found]
    gradients = [
        torch.autograd.grad(
            sum((part * weight).sum() for part, weight in zip(both, weights, strict=True)), arguments
        )
        for both in (found, expected)
    ]
    for one, other in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture(scope="module")
def host_kernel(tmp_path_factory):
    """run(rows, backwards, batch, length, heads, pointers...) of the kernel's own source, for heads of 8."""
    folder = tmp_path_factory.mktemp("host")
    source = fused_kernels.SOURCES[0].read_text()
    # What follows starts kernels, in a syntax of its own.
    kernel = source[: source.index("template <int SIZE>\nstatic void launch")]
    (folder / "kernel.h").write_text(kernel.replace("#include <cuda_runtime.h>", ""))
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f'-DKERNEL="{folder}/kernel.h"']
    shim = Path(__file__).with_name("host_block.cpp")
    subprocess.run([*command, "-o", str(folder / "host.so"), str(shim)], check=True)
    return ctypes.CDLL(str(folder / "host.so")).run


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_kernels_source_computes_the_scan(host_kernel, rows, backwards):
    generator = torch.Generator().manual_seed(2)
    q, k, v, w = (torch.randn(2, 11, 3, 8, generator=generator) for _ in range(4))
    w, state = -w.exp(), torch.randn(2, 3, 8, 8, generator=generator)
    out, last = torch.empty_like(q), torch.empty_like(state)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (q, k, v, w, state, out, last)]
    host_kernel(int(rows), int(backwards), 2, 11, 3, *pointers)
    expected = plain_scan(q, k, v, w, state, rows, backwards)
    torch.testing.assert_close((out, last), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("architectures", [("sm_80",), ("sm_80", "sm_90", "sm_100")])
def test_the_kernel_compiles_once_for_each_set_of_architectures(architectures, tmp_path):
    library = fused_kernels.compile_library(tmp_path, architectures)
    written = library.stat().st_mtime_ns
    symbols = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout
    assert " T wkv6_scan" in symbols
    assert fused_kernels.compile_library(tmp_path, architectures) == library
    assert library.stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [library]


def test_a_compiler_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'fatal: no such architecture' >&2; echo more >&2; exit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(
        LaunchError, match="^nvcc could not compile the kernels: fatal: no such architecture$"
    ):
        fused_kernels.compile_library(tmp_path / "build", ("sm_1",))
    assert list((tmp_path / "build").iterdir()) == []


def test_the_compiler_is_found_where_cuda_is_installed_without_being_on_the_path(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(fused_kernels, "TOOLKIT", tmp_path)
    assert fused_kernels._nvcc() == str(nvcc)


def test_without_a_compiler_plain_torch_is_announced_once(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setattr(fused_kernels, "_loaded", [])
    assert fused_kernels.load() is None and fused_kernels.load() is None
    assert capsys.readouterr().err.count("replaced by plain torch") == 1

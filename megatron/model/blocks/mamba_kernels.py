"""The CUDA kernels of Mamba's authors, from the packages mamba-ssm and causal-conv1d."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from megatron import mpu
from megatron.common import device
from megatron.common.console import print_rank_0
from megatron.common.optional import require

EXTRA = "mamba"


class MambaKernels(NamedTuple):
    """Functions of the packages; None: plain torch does it. inner computes all from in_proj's to out_proj's output."""

    conv: Callable | None = None
    scan: Callable | None = None
    inner: Callable | None = None


def choose_kernels(neox_args) -> MambaKernels:
    """What the mamba_*_fusion keys ask for; where it cannot be had, a line says so.

    Raises: MissingPackageError.
    """
    conv, scan = neox_args.mamba_causal_conv_fusion, neox_args.mamba_selective_scan_fusion
    inner = neox_args.mamba_inner_func_fusion
    if not (conv or scan or inner):
        return MambaKernels()
    if not device.has_accelerator():
        _say_once("Mamba's kernels need a GPU: mamba_*_fusion is left to plain torch, with the same results")
        return MambaKernels()
    if neox_args.isolate_documents:
        _say_once(
            "Mamba's kernels do not start anew within a sample: isolate_documents leaves the work to plain torch"
        )
        return MambaKernels()
    if inner and mpu.get_model_parallel_world_size() > 1:
        _say_once(
            "mamba_inner_func_fusion runs as convolution and scan: tensor parallelism sums between them"
        )
        conv, scan, inner = True, True, False
    return MambaKernels(
        _function("causal_conv1d", "causal_conv1d_fn", "mamba_causal_conv_fusion") if conv else None,
        _scan_function("selective_scan_fn", "mamba_selective_scan_fusion") if scan else None,
        _scan_function("mamba_inner_fn", "mamba_inner_func_fusion") if inner else None,
    )


def _scan_function(name: str, key: str) -> Callable:
    return _function("mamba_ssm.ops.selective_scan_interface", name, key)


def _function(module: str, name: str, key: str) -> Callable:
    return getattr(require(module, EXTRA, f"{key}: true"), name)


@functools.cache
def _say_once(message: str) -> None:
    print_rank_0(message)

"""LayerNorm and RMSNorm under the names of the fused kernels that GPT-NeoX took from apex; torch has its own."""

import torch
import torch.nn.functional as F

from megatron.model.norms import LayerNorm, RMSNorm
from megatron.mpu.parameters import ParameterSpec, make_parameter, zeros_

__all__ = ["MixedFusedLayerNorm", "MixedFusedRMSNorm"]


def _around_zero(size: int) -> torch.nn.Parameter:
    """A weight kept as its difference from one, so that rounding spares the digits of small changes."""
    return make_parameter(ParameterSpec((size,), zeros_))


def _mark(norm: torch.nn.Module, sequence_parallel: bool) -> None:
    for parameter in norm.parameters():
        parameter.sequence_parallel = sequence_parallel


class MixedFusedLayerNorm(LayerNorm):
    """LayerNorm (arXiv 1607.06450).

    Args:
        no_persist_layer_norm, mem_efficient_ln: chose kernels of apex; torch has one.
        sequence_parallel: mark the parameters as seeing a part of the sequence.
        apply_layernorm_1p: keep the weight as its difference from one.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        no_persist_layer_norm: bool = True,
        sequence_parallel: bool = False,
        apply_layernorm_1p: bool = False,
        mem_efficient_ln: bool = True,
    ):
        super().__init__(normalized_shape, eps)
        self.from_one = apply_layernorm_1p
        if self.from_one:
            self.weight = _around_zero(normalized_shape)
        _mark(self, sequence_parallel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        weight = self.weight + 1 if self.from_one else self.weight
        return F.layer_norm(x, weight.shape, weight, self.bias, self.eps)


class MixedFusedRMSNorm(RMSNorm):
    """RMSNorm (arXiv 1910.07467). Args as in MixedFusedLayerNorm."""

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        no_persist_layer_norm: bool = True,
        sequence_parallel: bool = False,
        apply_rmsnorm_1p: bool = False,
        mem_efficient_rms: bool = True,
    ):
        super().__init__(normalized_shape, eps=eps)
        self.from_one = apply_rmsnorm_1p
        if self.from_one:
            self.scale = _around_zero(normalized_shape)
        _mark(self, sequence_parallel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        scale = self.scale + 1 if self.from_one else self.scale
        return F.rms_norm(x, scale.shape, scale, self.eps)

"""The norms of the package transformer_engine, for NVIDIA GPUs."""

from collections.abc import Callable

import torch

from megatron.common.optional import require
from megatron.mpu.parameters import ParameterSpec, make_parameter, ones_, zeros_
from megatron.registry import register


class _TransformerEngineNorm(torch.nn.Module):
    """One of the package's norms, as module `norm`, with parameters that know their shard."""

    def __init__(self, kind: str, size: int, eps: float, names: tuple[str, ...], key: str):
        super().__init__()
        package = require("transformer_engine.pytorch", "transformerengine", f"norm: {key}")
        self.norm = getattr(package, kind)(size, eps=eps)
        for name, init in (("weight", ones_), ("bias", zeros_)):
            if name in names:
                setattr(self.norm, name, make_parameter(ParameterSpec((size,), init)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return self.norm(x)


@register("norm", "te_rmsnorm", needs="transformer_engine")
class TERMSNorm(_TransformerEngineNorm):
    """RMSNorm (arXiv 1910.07467). Parameter: norm.weight [size]."""

    def __init__(self, size: int, eps: float = 1e-8):
        super().__init__("RMSNorm", size, eps, ("weight",), "te_rmsnorm")

    @classmethod
    def from_config(cls, neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
        """(norm, eps); key rms_norm_epsilon."""
        return cls, neox_args.rms_norm_epsilon


@register(
    "norm",
    "te_layernorm",
    needs="transformer_engine",
    lacks={"norms without biases": "the package's layer always has one; use norm: layernorm"},
)
class TELayerNorm(_TransformerEngineNorm):
    """LayerNorm (arXiv 1607.06450). Parameters: norm.weight, norm.bias [size]."""

    def __init__(self, size: int, eps: float = 1e-5):
        super().__init__("LayerNorm", size, eps, ("weight", "bias"), "te_layernorm")

    @classmethod
    def from_config(cls, neox_args) -> tuple[Callable[..., torch.nn.Module], float]:
        """(norm, eps); key layernorm_epsilon."""
        return cls, neox_args.layernorm_epsilon

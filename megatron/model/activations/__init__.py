"""MLP non-linearities, one file per choice or family of the config key `activation`."""

from megatron.model.activations.gated import Gated_Activation
from megatron.model.activations.gelu import bias_gelu, bias_gelu_back, bias_gelu_impl, erf_gelu
from megatron.model.activations.plain import mish, swish
from megatron.model.activations.select import get_activation

__all__ = [
    "Gated_Activation",
    "bias_gelu",
    "bias_gelu_back",
    "bias_gelu_impl",
    "erf_gelu",
    "get_activation",
    "mish",
    "swish",
]

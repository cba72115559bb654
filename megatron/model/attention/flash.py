"""The flash-attn package (arXiv 2307.08691), for 16-bit tensors on a GPU."""

import importlib.util

import torch

from megatron.common.device import has_accelerator
from megatron.model.attention.backend import Capabilities
from megatron.registry import register


def usable(neox_args) -> bool:
    """Whether the package is installed and the run is one it can serve."""
    half_precision = neox_args.params_dtype in (torch.float16, torch.bfloat16)
    return half_precision and has_accelerator() and importlib.util.find_spec("flash_attn") is not None


@register("attention back-end", "flash_attn", capabilities=Capabilities(gqa=True))
class FlashAttention:
    """See Backend. The package aligns a causal mask with the last key, as a continued sequence needs."""

    def __init__(self):
        from flash_attn import flash_attn_func

        self.attend = flash_attn_func

    def __call__(self, query, key, value, *, scale, dropout, positions=None):
        assert positions is None, "isolated documents need another back-end"
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        output = self.attend(query, key, value, dropout_p=dropout, softmax_scale=scale, causal=True)
        return output.transpose(1, 2)

"""AdamW (arXiv:1711.05101): what GPT-NeoX calls Adam has always decayed weights apart from the gradient."""

import torch

from megatron.common import device
from megatron.common.console import info
from megatron.common.errors import ConfigError
from megatron.registry import register

_ACCEPTED = {"lr", "betas", "eps", "weight_decay"}
# Written by older configs for other optimizers' sake; they have no meaning for Adam.
_MEANINGLESS = {"freeze_step", "momentum", "cuda_aware", "torch_adam", "adam_w_mode"}


def adam_settings(params: dict) -> dict:
    """Keep Adam's own settings.

    Raises: ConfigError for a setting that Adam does not have.
    """
    unknown = set(params) - _ACCEPTED - _MEANINGLESS
    if unknown:
        raise ConfigError(
            f"optimizer.params has {', '.join(sorted(unknown))}, which adam does not know: it takes "
            f"{', '.join(sorted(_ACCEPTED))}"
        )
    settings = {name: value for name, value in params.items() if name in _ACCEPTED}
    settings["betas"] = tuple(settings.get("betas", (0.9, 0.999)))
    return settings


@register("optimizer", "adam", "adamw")
def adam(param_groups: list[dict], params: dict):
    """DeepSpeed's fused kernel on a GPU where it can be built, else torch's fused AdamW (needs no compiler)."""
    settings = adam_settings(params)
    if device.has_accelerator():
        from deepspeed.ops.op_builder import FusedAdamBuilder

        if FusedAdamBuilder().is_compatible(verbose=False):
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(param_groups, adam_w_mode=True, **settings)
        info("DeepSpeed's fused Adam cannot be compiled here (no CUDA toolkit): using torch's fused AdamW")
    return torch.optim.AdamW(param_groups, fused=True, **settings)


@register("optimizer", "cpu_adam", "cpu_torch_adam")
def cpu_adam(param_groups: list[dict], params: dict):
    """torch's fused AdamW for parameters and states in host memory: vectorised, and nothing to compile."""
    return torch.optim.AdamW(param_groups, fused=True, **adam_settings(params))

"""AdamW (arXiv:1711.05101): what GPT-NeoX calls Adam has always decayed weights apart from the gradient.

With `adam_w_mode: false` it is the Adam of arXiv:1412.6980, with the decay added to the gradient.
"""

import torch

from megatron.common import device
from megatron.common.errors import ConfigError
from megatron.optimizers.capabilities import Capabilities
from megatron.optimizers.fused import fused_or_none
from megatron.registry import register

_ACCEPTED = {"lr", "betas", "eps", "weight_decay"}
# Which Adam it is, and whose.
_SWITCHES = {"adam_w_mode", "torch_adam"}
# Written by older configs for other optimizers' sake; they have no meaning for Adam.
_MEANINGLESS = {"freeze_step", "momentum", "cuda_aware"}


def adam_settings(params: dict) -> dict:
    """Keep Adam's own settings.

    Raises: ConfigError for a setting that Adam does not have.
    """
    unknown = set(params) - _ACCEPTED - _SWITCHES - _MEANINGLESS
    if unknown:
        raise ConfigError(
            f"optimizer.params has {', '.join(sorted(unknown))}, which adam does not know: it takes "
            f"{', '.join(sorted(_ACCEPTED | _SWITCHES))}"
        )
    settings = {name: value for name, value in params.items() if name in _ACCEPTED}
    settings["betas"] = tuple(settings.get("betas", (0.9, 0.999)))
    return settings


@register("optimizer", "adam", "adamw", capabilities=Capabilities(states=2))
def adam(param_groups: list[dict], params: dict):
    """DeepSpeed's fused kernel on a GPU where it can be built, else torch's (which needs no compiler, and is taken as
    well if `torch_adam` asks for it)."""
    settings = adam_settings(params)
    if device.has_accelerator() and not params.get("torch_adam", False):
        from deepspeed.ops.adam import FusedAdam

        decoupled = params.get("adam_w_mode", True)
        if (fused := fused_or_none(FusedAdam, param_groups, adam_w_mode=decoupled, **settings)) is not None:
            return fused
    return cpu_adam(param_groups, params)


@register("optimizer", "cpu_adam", "cpu_torch_adam", capabilities=Capabilities(states=2))
def cpu_adam(param_groups: list[dict], params: dict):
    """torch's fused AdamW, for parameters and states in host memory too: as fast there as DeepSpeed's, and nothing to
    compile."""
    kind = torch.optim.AdamW if params.get("adam_w_mode", True) else torch.optim.Adam
    return kind(param_groups, fused=True, **adam_settings(params))

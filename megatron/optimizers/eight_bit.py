"""AdamW with states in 8 bits (arXiv:2110.02861), of the package bitsandbytes."""

import torch

from megatron.common.optional import require


def adam_8bit(param_groups: list[dict], settings: dict) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW; embedding tables and the output layer keep their states in 32 bits, as the paper advises.

    Raises: MissingPackageError without bitsandbytes.
    """
    optim = require("bitsandbytes.optim", "bnb", "use_bnb_optimizer")

    class AdamW8bit(optim.AdamW8bit):
        def get_config(self, gindex, pindex, group):
            # bitsandbytes knows exceptions by the place of a parameter, which ZeRO changes.
            return {**super().get_config(gindex, pindex, group), "optim_bits": group["state_bits"]}

    groups = []
    for group in param_groups:
        for bits in (8, 32):
            members = [p for p in group["params"] if (32 if getattr(p, "is_table", False) else 8) == bits]
            if members:
                groups.append({**group, "params": members, "state_bits": bits})
    return AdamW8bit(groups, **settings)

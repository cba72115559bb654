"""Where parts of parameters are looked at."""

from types import SimpleNamespace

import pytest
import torch

from megatron.common import device
from megatron.engine.parts import EngineParts


@pytest.mark.parametrize("offloaded", [True, False])
def test_parts_are_on_the_ranks_device_also_where_zero_keeps_them_in_host_memory(offloaded, monkeypatch):
    """NCCL adds up nothing that lies elsewhere, and a sum over parameters takes them all from one place."""
    monkeypatch.setattr(device, "current_device", lambda: torch.device("meta"))
    parameter = torch.nn.Parameter(torch.empty(2, 3, dtype=torch.bfloat16, device="meta"))
    states = SimpleNamespace(
        get_hp_fragment=lambda kind=None: torch.ones(2, 3),
        get_optim_state_keys=lambda: ["exp_avg"],
        get_lp_grad_fragment=lambda index: torch.ones(6),
        lp_fragment_address=SimpleNamespace(start=0, numel=6),
    )
    # A rank of ZeRO has nothing of some parameters.
    parameter._hp_mapping, parameter._index_in_param_group = states if offloaded else None, 0
    engine = SimpleNamespace(optimizer=SimpleNamespace(loss_scale=2.0), zero_optimization_stage=lambda: 1)
    parts = EngineParts(engine)
    for part in (parts.gradient(parameter), parts.value(parameter), parts.state(parameter, "exp_avg")):
        assert (part.device.type, part.dtype, part.shape) == ("meta", torch.float32, (6 * offloaded,))

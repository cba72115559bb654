"""The back-end of torch.distributed that a run asks for."""

import pytest

from megatron.common import device
from megatron.common.errors import ConfigError


def test_a_cpu_takes_gloo_for_the_default_and_what_is_asked_for_otherwise(monkeypatch):
    monkeypatch.setattr(device, "has_accelerator", lambda: False)
    assert device.backend("nccl") == "gloo"
    assert device.backend("cpu:gloo,cuda:gloo") == "cpu:gloo,cuda:gloo"


@pytest.mark.parametrize("asked", ["glo", "cpu:gloo,cuda:abc"])
def test_one_that_is_not_there_is_named_with_those_that_are(asked):
    with pytest.raises(ConfigError, match=f"distributed_backend='{asked}' is not among .*gloo"):
        device.backend(asked)

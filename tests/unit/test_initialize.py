"""A process and its device."""

import pytest
import torch

from megatron import initialize
from megatron.common import device


class Accelerator:
    """DeepSpeed's, as far as it is asked for a device by number."""

    def device(self, device_index=None):
        return torch.device("cuda", device_index)

    def device_name(self, device_index=None):
        return "cuda" if device_index is None else f"cuda:{device_index}"

    def set_device(self, device_index):
        self.current = device_index


@pytest.mark.parametrize(("visible", "own"), [(1, 0), (4, 3)])
def test_deepspeed_works_on_the_device_that_the_process_has(visible, own, monkeypatch):
    monkeypatch.setattr(device, "accelerator_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setenv("LOCAL_RANK", "3")
    accelerator = Accelerator()
    initialize._number_devices(accelerator)
    accelerator.set_device(3)
    assert accelerator.current == own
    assert (accelerator.device(3), accelerator.device_name(3)) == (torch.device("cuda", own), f"cuda:{own}")
    assert accelerator.device_name() == "cuda"

"""The launcher counts devices without loading torch."""

import socket
import sys

import pytest
import torch

from megatron.common import device
from megatron.common.errors import LaunchError


class Library:
    """NVIDIA's management library on a machine with four devices."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, reference) -> int:
        reference._obj.value = 4
        return 0

    def nvmlShutdown(self) -> int:
        return 0


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(device, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(device, "_torch_is_built_for_cuda", lambda: True)
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Library())
    return monkeypatch


@pytest.mark.parametrize(("visible", "count"), [(None, 4), ("2,3", 2), ("", 0), ("0", 1)])
def test_devices_are_counted_by_the_driver_within_what_is_visible(machine, visible, count):
    if visible is not None:
        machine.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.accelerator_count() == count
    assert "torch" not in sys.modules


@pytest.mark.parametrize("visible", ["-1", "GPU-12ab", "0,7", "MIG-3"])
def test_what_only_torch_can_tell_is_left_to_torch(machine, visible):
    machine.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device._count_by_driver() is None


def test_a_torch_without_cuda_has_no_devices_whatever_the_driver_says(machine):
    machine.setattr(device, "_torch_is_built_for_cuda", lambda: False)
    assert device._count_by_driver() is None


def test_the_cpu_may_be_asked_for(machine):
    machine.setenv("DS_ACCELERATOR", "cpu")
    assert device.accelerator_count() == 0


def test_the_kind_of_build_is_read_without_importing_torch():
    assert device._torch_is_built_for_cuda() == (torch.version.cuda is not None)


def test_more_processes_than_devices_are_refused_with_the_host(monkeypatch):
    monkeypatch.setattr(device, "accelerator_count", lambda: 4)
    for rank in ("0", "3"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        device.check_own_device()
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(
        LaunchError, match=f"host '{socket.gethostname()}' has 4 devices, .* process number 5"
    ):
        device.check_own_device()
    # jsrun and others show each process its own device only.
    monkeypatch.setattr(device, "accelerator_count", lambda: 1)
    device.check_own_device()


def test_a_process_that_works_on_devices_does_not_look_for_them_again(machine):
    machine.setitem(sys.modules, "torch", torch)
    machine.setattr(torch.cuda, "is_initialized", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: 3)
    machine.delattr(device, "glob")
    assert device.accelerator_count() == 3

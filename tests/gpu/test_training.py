"""On a GPU training says the same as on the CPU, in every precision, with the kernels that a GPU has."""

import pytest

from tests.common.distributed import run_distributed
from tests.distributed.layouts import train_steps

STEPS = 20


def on_gpu(settings: dict) -> dict:
    return run_distributed(train_steps, 1, settings, STEPS, 1, backend="nccl", timeout=600)[0]


def on_cpu(settings: dict) -> dict:
    environment = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return run_distributed(train_steps, 1, settings, STEPS, 1, env=environment, timeout=600)[0]


@pytest.fixture(scope="module")
def reference():
    # Both devices draw the initial weights on the CPU, since their own generators differ.
    return on_cpu({"use_cpu_initialization": True})


def test_fp32_losses_and_gradients_equal_the_cpus(reference):
    result = on_gpu({"use_cpu_initialization": True})
    assert result["losses"] == pytest.approx(reference["losses"], rel=1e-3)
    for name, (gradient, *_) in result["gradients"].items():
        expected = reference["gradients"][name][0]
        assert (gradient - expected).norm() < 1e-3 * expected.norm() + 1e-6, name


@pytest.mark.parametrize("precision", ["bfloat16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_half_precision_follows_the_fp32_loss(reference, precision, stage):
    settings = {"use_cpu_initialization": True, "precision": precision, "zero_optimization": {"stage": stage}}
    assert on_gpu(settings)["losses"] == pytest.approx(reference["losses"], rel=2e-2)


@pytest.mark.parametrize(
    "option", ["checkpoint_activations", "contiguous_checkpointing", "checkpoint_in_cpu"]
)
def test_recomputation_changes_no_loss(option):
    plain = on_gpu({})
    settings = {"checkpoint_activations": True, option: True}
    if option == "contiguous_checkpointing":
        settings["partition_activations"] = True
    assert on_gpu(settings)["losses"] == pytest.approx(plain["losses"], rel=1e-5)

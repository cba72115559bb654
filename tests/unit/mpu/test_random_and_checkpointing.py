import pytest
import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.mpu import checkpointing
from tests.common.distributed import run_distributed


@pytest.fixture(autouse=True)
def plain_options():
    mpu.model_parallel_cuda_manual_seed(5)
    yield
    mpu.configure_checkpointing()


def test_a_fork_draws_from_its_own_state_and_leaves_the_default_one():
    tracker = mpu.get_cuda_rng_tracker()
    expected_default = torch.rand(3, generator=torch.Generator().manual_seed(5))
    expected_own = torch.rand(6, generator=torch.Generator().manual_seed(5 + 2718))
    with tracker.fork():
        first = torch.rand(3)
    default = torch.rand(3)
    with tracker.fork():
        second = torch.rand(3)
    assert torch.equal(default, expected_default)
    assert torch.equal(torch.cat([first, second]), expected_own)


def test_tracked_states_can_be_saved_and_restored():
    tracker = mpu.get_cuda_rng_tracker()
    saved = tracker.get_states()
    with tracker.fork():
        first = torch.rand(3)
    tracker.set_states(saved)
    with tracker.fork():
        assert torch.equal(torch.rand(3), first)


def test_a_state_is_added_once_and_must_exist_to_be_forked():
    tracker = mpu.get_cuda_rng_tracker()
    with pytest.raises(AssertionError, match="exists already"):
        tracker.add("model-parallel-rng", 1)
    with pytest.raises(AssertionError, match="was not added"), tracker.fork("other"):
        pass


def noisy(weight, calls=None):
    def function(x):
        if calls is not None:
            calls.append(torch.is_grad_enabled())
        x = F.dropout(torch.tanh(x @ weight), 0.5)
        with mpu.get_cuda_rng_tracker().fork():
            return F.dropout(x, 0.5)

    return function


def losses_and_gradients(recompute: bool, calls=None, replicated=True):
    mpu.model_parallel_cuda_manual_seed(5)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 6, generator=generator).requires_grad_()
    x = torch.randn(4, 6, generator=generator).requires_grad_()
    function = noisy(weight, calls)
    hidden = mpu.checkpoint(function, x, replicated=replicated) if recompute else function(x)
    (hidden * torch.rand(4, 6)).sum().backward()  # the random numbers after the stretch must be the same too
    return hidden.detach(), x.grad, weight.grad, torch.rand(2)


OPTIONS = [
    {},
    {"checkpoint_in_cpu": True},
    {"contiguous_checkpointing": True},
    {"synchronize": True, "partition_activations": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
def test_recomputation_with_random_numbers_changes_no_result(options):
    mpu.configure_checkpointing(**options)
    calls = []
    for _ in range(2):  # the second time finds buffers of the first
        with_recompute = losses_and_gradients(True, calls)
        for one, other in zip(losses_and_gradients(False), with_recompute, strict=True):
            assert torch.equal(one, other)
    assert calls == [False, True] * 2


def test_parameters_inside_get_gradients_even_if_the_input_asks_for_none():
    weight = torch.randn(6, 6, requires_grad=True)
    mpu.checkpoint(noisy(weight), torch.randn(4, 6)).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_without_gradients_the_function_is_just_called():
    weight, calls = torch.randn(6, 6), []
    with torch.no_grad():
        mpu.checkpoint(noisy(weight, calls), torch.randn(4, 6))
    assert calls == [False]


def test_contiguous_buffers_are_used_again():
    mpu.configure_checkpointing(contiguous_checkpointing=True)
    checkpointing._free_buffers.clear()
    for _ in range(3):
        losses_and_gradients(True)
    assert [len(buffers) for buffers in checkpointing._free_buffers.values()] == [1]
    mpu.forget_buffers()
    assert checkpointing._free_buffers == {}


def test_backward_passes_are_measured_by_their_labels_only_if_asked_for():
    def stretch(x):
        return x * 2

    stretch.label = "block 7"
    for profile, expected in ((True, ["block 7"]), (False, [])):
        mpu.configure_checkpointing(profile=profile)
        mpu.checkpoint(stretch, torch.ones(3, requires_grad=True)).sum().backward()
        seconds = mpu.backward_seconds()
        assert list(seconds) == expected and all(value > 0 for value in seconds.values())
    assert mpu.backward_seconds() == {}


def partitioned(replicated):
    mpu.initialize_model_parallel(2)
    mpu.configure_checkpointing(partition_activations=True)
    kept = []
    keep = checkpointing._keep
    checkpointing._keep = lambda *args: kept.append(keep(*args)) or kept[-1]
    results = [losses_and_gradients(True, replicated=replicated), losses_and_gradients(False)]
    return results, kept[0].tensor.numel()


@pytest.mark.parametrize("replicated, elements", [(True, 12), (False, 24)])
def test_partitioned_activations_keep_a_share_and_change_no_result(replicated, elements):
    for (recomputed, plain), kept in run_distributed(partitioned, 2, replicated):
        assert kept == elements
        for one, other in zip(recomputed, plain, strict=True):
            assert torch.equal(one, other)

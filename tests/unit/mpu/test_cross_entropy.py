import pytest
import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.model import cross_entropy
from megatron.mpu import cross_entropy as module
from tests.common.distributed import run_distributed


@pytest.fixture(params=["whole", "chunks of three tokens"])
def chunking(request, monkeypatch):
    if request.param != "whole":
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * 11)


def sample(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 5, 11, generator=generator) * 3).to(dtype)
    target = torch.randint(0, 11, (2, 5), generator=generator)
    weight = torch.rand(2, 5, generator=generator)
    return logits, target, weight


def reference(logits, target, weight):
    leaf = logits.double().requires_grad_()
    loss = F.cross_entropy(leaf.view(-1, 11), target.view(-1), reduction="none").view(2, 5)
    (loss * weight).sum().backward()
    return loss.detach(), leaf.grad


def test_golden_value():
    loss = mpu.vocab_parallel_cross_entropy(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([2]))
    assert loss.item() == pytest.approx(1.4401897, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_equal_double_precision(dtype, chunking):
    logits, target, weight = sample(dtype)
    expected_loss, expected_gradient = reference(logits, target, weight)
    leaf = logits.clone().requires_grad_()
    loss = mpu.vocab_parallel_cross_entropy(leaf, target)
    (loss * weight).sum().backward()
    assert loss.dtype == torch.float32 and leaf.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-5)
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(leaf.grad.double(), expected_gradient, rtol=tolerance, atol=tolerance)


def reference_with_z_loss(logits, target, weight, z_loss):
    """(loss, z-loss, gradient) by the formula, in double precision."""
    leaf = logits.double().requires_grad_()
    log_sum = leaf.exp().sum(-1).log()
    z_losses = z_loss * log_sum**2
    losses = log_sum - leaf.gather(-1, target.unsqueeze(-1)).squeeze(-1) + z_losses
    (losses * weight).sum().backward()
    return losses.detach(), z_losses.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_z_loss_and_its_gradient_equal_the_formula(dtype, chunking):
    logits, target, weight = sample(dtype)
    expected, expected_z, expected_gradient = reference_with_z_loss(logits, target, weight, 0.1)
    leaf = logits.clone().requires_grad_()
    losses, z_losses = mpu.vocab_parallel_cross_entropy_with_z_loss(leaf, target, 0.1)
    (losses * weight).sum().backward()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z_losses.double(), expected_z, rtol=1e-5, atol=1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(leaf.grad.double(), expected_gradient, rtol=tolerance, atol=tolerance)
    assert not z_losses.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_callers_logits_are_left_alone(dtype, chunking):
    logits, target, weight = sample(dtype)
    leaf = logits.clone().requires_grad_()
    (mpu.vocab_parallel_cross_entropy(leaf, target) * weight).sum().backward()
    assert torch.equal(leaf, logits)


def test_walking_a_retained_graph_twice_is_noticed():
    logits, target, weight = sample(torch.bfloat16)
    loss = (mpu.vocab_parallel_cross_entropy(logits.requires_grad_(), target) * weight).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def shard_of_the_vocabulary(dtype):
    mpu.initialize_model_parallel(2)
    logits, target, weight = sample(dtype)
    logits = F.pad(logits, (0, 1), value=-torch.inf)  # 12 columns, so that two ranks share them
    leaf = logits.chunk(2, -1)[mpu.get_model_parallel_rank()].clone().requires_grad_()
    loss = mpu.vocab_parallel_cross_entropy(leaf, target)
    (loss * weight).sum().backward()
    return loss.detach(), leaf.grad.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vocabulary_cut_over_ranks_gives_the_same_loss_and_gradient(dtype):
    ranks = run_distributed(shard_of_the_vocabulary, 2, dtype)
    expected_loss, expected_gradient = reference(*sample(dtype))
    gradient = torch.cat([rank[1] for rank in ranks], -1)[..., :11]
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for loss, _ in ranks:
        torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


def shard_with_z_loss():
    mpu.initialize_model_parallel(2)
    logits, target, weight = sample()
    logits = F.pad(logits, (0, 1), value=-torch.inf)
    leaf = logits.chunk(2, -1)[mpu.get_model_parallel_rank()].clone().requires_grad_()
    losses, z_losses = mpu.vocab_parallel_cross_entropy_with_z_loss(leaf, target, 0.1)
    (losses * weight).sum().backward()
    return losses.detach(), z_losses, leaf.grad


def test_z_loss_of_a_vocabulary_cut_over_ranks_is_that_of_the_whole():
    ranks = run_distributed(shard_with_z_loss, 2)
    expected, expected_z, expected_gradient = reference_with_z_loss(*sample(), 0.1)
    for losses, z_losses, _ in ranks:
        torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(z_losses.double(), expected_z, rtol=1e-5, atol=1e-5)
    gradient = torch.cat([rank[2] for rank in ranks], -1)[..., :11]
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-5)


def test_mean_is_over_the_tokens_that_count():
    logits, target, _ = sample()
    mask = torch.zeros(2, 5)
    mask[0, :3] = 1.0
    expected = F.cross_entropy(logits[0, :3], target[0, :3])
    assert cross_entropy(logits, (target, mask)).item() == pytest.approx(expected.item())


def test_a_batch_with_nothing_to_learn_has_loss_zero_and_no_gradient():
    logits, target, _ = sample()
    leaf = logits.requires_grad_()
    loss = cross_entropy(leaf, (target, torch.zeros(2, 5)))
    (loss * 65536.0).backward()  # as a loss scaler does
    assert loss.item() == 0.0
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_half_precision_loss_accepts_a_float_mask():
    logits, target, _ = sample(torch.float16)
    loss = cross_entropy(logits, (target, torch.ones(2, 5)), _fp16=True)
    full = cross_entropy(logits, (target, torch.ones(2, 5)))
    assert loss.dtype == torch.float16
    assert loss.item() == pytest.approx(full.item(), rel=1e-2)

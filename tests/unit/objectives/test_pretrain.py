"""Which tokens count in a language model's loss, and what is added to it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron.objectives.pretrain import Pretrain

EOD = 3


def objective(**settings) -> Pretrain:
    values = {
        "eod_mask_loss": False,
        "isolate_documents": False,
        "fp16_lm_cross_entropy": False,
        "z_loss": 0.0,
        "dataset_impl": "gpt2",
        "soft_prompt_tuning": None,
        "tokenizer": SimpleNamespace(eod=EOD),
    }
    return Pretrain(SimpleNamespace(**{**values, **settings}))


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [2, 4, 7], text [2, 5] with EOD as an input in both rows)."""
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    return logits, torch.tensor([[1, EOD, 5, 2, 6], [EOD, 1, 1, 4, EOD]])


def test_positions_whose_input_is_eod_are_left_out_of_the_loss():
    logits, text = example()
    masked = objective(eod_mask_loss=True)
    _, targets = masked.collate({"text": text})
    keep = torch.tensor([[True, False, True, True], [False, True, True, True]])
    assert torch.equal(targets[1].bool(), keep)
    expected = F.cross_entropy(logits[keep], text[:, 1:][keep])
    torch.testing.assert_close(masked.loss(logits, targets).value, expected)


def test_a_micro_batch_without_a_token_that_counts_has_loss_zero():
    logits, text = example()
    labels = torch.full_like(text, -100)
    plain = objective(z_loss=0.1)
    _, targets = plain.collate({"text": text, "label": labels})
    leaf = logits.requires_grad_()
    loss = plain.loss(leaf, targets)
    loss.value.backward()
    assert loss.value.item() == 0.0 and torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_the_z_loss_is_a_mean_over_the_tokens_that_count_and_logged_apart():
    logits, text = example()
    penalised = objective(z_loss=0.1, eod_mask_loss=True)
    _, targets = penalised.collate({"text": text})
    loss = penalised.loss(logits, targets)
    plain = objective(eod_mask_loss=True).loss(logits, targets).value
    keep = targets[1].bool()
    expected = 0.1 * logits.logsumexp(-1)[keep].square().mean()
    torch.testing.assert_close(loss.metrics["z_loss"], expected)
    torch.testing.assert_close(loss.metrics["lm_loss"], plain)
    torch.testing.assert_close(loss.value, plain + expected)
    assert tuple(loss.metrics) == penalised.metric_names


def test_evaluation_leaves_the_z_loss_out():
    logits, text = example()
    penalised = objective(z_loss=0.1)
    _, targets = penalised.collate({"text": text})
    with torch.no_grad():
        loss = penalised.loss(logits, targets)
    torch.testing.assert_close(loss.value, objective().loss(logits, targets).value)
    assert loss.metrics == {}


@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
def test_the_half_precision_loss_stays_in_half_precision(z_loss):
    logits, text = example()
    half = objective(fp16_lm_cross_entropy=True, z_loss=z_loss)
    _, targets = half.collate({"text": text})
    value = half.loss(logits.half(), targets).value
    assert value.dtype == torch.float16
    assert value.item() == pytest.approx(
        objective(z_loss=z_loss).loss(logits, targets).value.item(), rel=1e-2
    )

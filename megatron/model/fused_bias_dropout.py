"""The end of a residual branch: residual + dropout(x + bias)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def bias_dropout_add(
    x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, prob: float, training: bool
) -> torch.Tensor:
    """residual + dropout(x + bias) with drop probability `prob`; no bias, no bias term."""
    if bias is not None:
        x = x + bias
    if training and prob > 0.0:
        x = F.dropout(x, prob)
    return residual + x


def bias_dropout_add_fused_train(
    x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, prob: float
) -> torch.Tensor:
    """bias_dropout_add in training."""
    return bias_dropout_add(x, bias, residual, prob, True)


def bias_dropout_add_fused_inference(
    x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, prob: float
) -> torch.Tensor:
    """bias_dropout_add in inference: nothing is dropped."""
    return bias_dropout_add(x, bias, residual, prob, False)


def get_bias_dropout_add(training: bool) -> Callable[..., torch.Tensor]:
    """The function (x, bias, residual, prob) for the mode."""
    return bias_dropout_add_fused_train if training else bias_dropout_add_fused_inference

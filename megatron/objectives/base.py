"""The interface of an objective."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass
class Loss:
    """A scalar to minimise and scalars to log, all of them tensors that need not have reached the host. The value is
    logged as lm_loss unless a metric of that name says better."""

    value: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A pair of functions; one micro-batch in, one loss out.

    Attributes: metric_names: names of the metrics of every training loss, in order; all stages of a
    pipeline must know them.
    """

    metric_names: tuple[str, ...]

    def collate(self, batch: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """Batch of the loader, on the device -> (model inputs, targets)."""

    def loss(self, outputs: torch.Tensor, targets: Any) -> Loss:
        """Model outputs and targets -> loss averaged over the micro-batch's tokens."""

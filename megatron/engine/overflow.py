"""Giving up when fp16 training has diverged."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.common.errors import NeoXError

ADVICE = "training has diverged; lower the learning rate, check the data, or use precision bfloat16"


@contextmanager
def explained_overflow() -> Iterator[None]:
    """Around an optimizer step.

    Raises: NeoXError where DeepSpeed finds that the loss scale cannot be lowered any further.
    """
    try:
        yield
    except Exception as error:
        # DeepSpeed has no class for it.
        if "loss scale already at minimum" in str(error):
            raise NeoXError(f"gradients overflow even at the smallest loss scale: {ADVICE}") from error
        raise


class OverflowMonitor:
    """Ends a run in which `n` steps in a row were skipped because of overflowing gradients.

    Raises (check): NeoXError after the n-th skipped step.
    """

    def __init__(self, optimizer, n: int = 50):
        # bf16 has the range of fp32: there is no loss scale to lower, so skipping means something else there.
        self._ignored = type(optimizer).__name__ == "BF16_Optimizer"
        self._limit = n
        self._in_a_row = 0

    def check(self, skipped: bool | int) -> None:
        """Count a step."""
        self._in_a_row = self._in_a_row + 1 if skipped and not self._ignored else 0
        if self._in_a_row >= self._limit:
            raise NeoXError(f"the last {self._limit} steps all overflowed and were skipped: {ADVICE}")

"""Giving up when fp16 training has diverged."""

from megatron.common.errors import NeoXError


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
            raise NeoXError(
                f"the last {self._limit} steps all overflowed and were skipped: training has diverged; lower the "
                "learning rate, check the data, or use precision bfloat16"
            )

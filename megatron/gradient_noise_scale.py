"""The gradient noise scale (arXiv 1812.06162): the batch size beyond which larger batches stop to pay.

Two batch sizes, B of a step and n B of n steps in a row, give unbiased estimates of the true gradient's square |G|^2
and of the trace of the gradients' covariance S; the noise scale is the ratio of their moving averages, tr(S) / |G|^2.
"""

from collections.abc import Mapping

import torch

from megatron import mpu as process_grid
from megatron.common.device import current_device
from megatron.engine.parts import EngineParts, before_step, counts


def ema(avg, beta: float, yi, i: int):
    """One step of an exponential moving average: (average with yi, the same corrected for having started at 0).

    Args: avg: average before, None or 0 at first; i: averaged values before this one.
    """
    avg = beta * (0.0 if avg is None else avg) + (1 - beta) * yi
    return avg, avg / (1 - beta ** (i + 1))


class GradientNoiseScale:
    """Watches the gradients of an engine; `update` is called before every optimizer step.

    Nothing waits for the host until the noise scale is asked for. A window of steps in which a gradient overflowed, or
    that a restart cut in two, does not count.

    Args:
        model: DeepSpeed engine.
        batch_size_small: samples of a step.
        n_batches: steps of a window, at least 2.
        beta: of the moving averages.
        cpu_offload: keep the window's sum of gradients in host memory.
        neox_args, mpu: taken from callers of GPT-NeoX; the engine and the process grid know what they would say.
    """

    def __init__(
        self,
        model,
        batch_size_small: int,
        n_batches: int = 10,
        beta: float = 0.99,
        cpu_offload: bool = False,
        neox_args=None,
        mpu=None,
    ):
        assert n_batches >= 2, "two batch sizes are compared"
        self.batch_size_small, self.batch_size_large = batch_size_small, n_batches * batch_size_small
        self.n_batches, self.beta, self.cpu_offload = n_batches, beta, cpu_offload
        self._parts = EngineParts(model)
        self._sums: list[torch.Tensor] | None = None
        self._seen = 0
        # Moving averages of tr(S) and |G|^2, and the number of values they are made of.
        self._averages: torch.Tensor | None = None

    @classmethod
    def from_config(cls, neox_args, engine) -> "GradientNoiseScale | None":
        """One that watches the engine, or None if the config does not ask for it."""
        if not neox_args.log_gradient_noise_scale:
            return None
        logger = cls(
            engine,
            batch_size_small=neox_args.train_batch_size,
            n_batches=neox_args.gradient_noise_scale_n_batches,
            cpu_offload=neox_args.gradient_noise_scale_cpu_offload,
        )
        before_step(engine, logger.update)
        return logger

    @property
    def noise_scale(self) -> float | None:
        """In samples; None until a window is complete. It is an estimate and may even be negative at first."""
        if self._averages is None:
            return None
        trace, square, updates = self._averages.tolist()
        # Both averages are corrected by the same factor.
        return trace / square if updates and square else None

    def update(self) -> None:
        """Take in the gradients of the present step, which must be reduced and not yet clipped."""
        parameters = [p for _, p in self._parts.named_parameters() if counts(p)]
        gradients = [self._parts.gradient(parameter) for parameter in parameters]
        self._add(gradients)
        self._seen += 1
        if self._seen < self.n_batches:
            return
        small = self._square(gradients)
        large = self._square(self._sums) / self.n_batches**2
        self._take(small, large)
        self._sums, self._seen = None, 0

    def state_dict(self) -> dict[str, list[float] | None]:
        """The averages; the window that is under way begins anew after a restart."""
        return {"averages": None if self._averages is None else self._averages.tolist()}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on with the averages of `state_dict`."""
        averages = state["averages"]
        self._averages = None if averages is None else torch.tensor(averages, dtype=torch.float64)
        self._sums, self._seen = None, 0

    def _add(self, gradients: list[torch.Tensor]) -> None:
        if self.cpu_offload:
            gradients = [gradient.cpu() for gradient in gradients]
        if self._sums is None:
            self._sums = [gradient.clone() for gradient in gradients]
        elif gradients:
            torch._foreach_add_(self._sums, gradients)

    def _square(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """|.|^2 of the whole logical vector, fp64, the same on all ranks; its parts are this rank's."""
        device = current_device()
        square = torch.zeros((), dtype=torch.float64, device=device)
        if parts:
            square += torch.stack(torch._foreach_norm(parts)).double().square().sum().to(device)
        groups = [process_grid.get_tensor_model_parallel_group(), process_grid.get_pipe_parallel_group()]
        if self._parts.partitioned:
            groups.append(process_grid.get_data_parallel_group())
        for group in groups:
            if torch.distributed.get_world_size(group) > 1:
                torch.distributed.all_reduce(square, group=group)
        return square

    def _take(self, small: torch.Tensor, large: torch.Tensor) -> None:
        """Average in the estimates from |g|^2 of a batch of either size, unless one of them is not finite."""
        b_small, b_large = self.batch_size_small, self.batch_size_large
        square = (b_large * large - b_small * small) / (b_large - b_small)
        trace = (small - large) / (1 / b_small - 1 / b_large)
        before = torch.zeros(3, dtype=torch.float64, device=small.device)
        if self._averages is not None:
            before = self._averages.to(small.device)
        fresh = torch.stack([trace, square])
        after = torch.cat([ema(before[:2], self.beta, fresh, 0)[0], before[2:] + 1])
        self._averages = torch.where(fresh.isfinite().all(), after, before)

"""1-bit Adam (arXiv:2102.02888): Adam at first, then momentum that data-parallel ranks exchange in one bit a value."""

from collections.abc import Iterator

import torch

from megatron import mpu
from megatron.mpu import collectives
from megatron.optimizers.capabilities import NO_MUP, Capabilities
from megatron.optimizers.sign_exchange import SignExchange
from megatron.registry import register

# What DeepSpeed's engines ask before they average gradients.
_AVERAGING = ("enable_backward_allreduce", "pipeline_enable_backward_allreduce")


class OneBitAdam(torch.optim.Optimizer):
    """AdamW for `freeze_step` steps. After them the second moment stays, gradients are no longer averaged, and each
    rank's own momentum m <- b1*m + (1-b1)*g is averaged by a SignExchange.

    Second moments far below the mean of their parameter (of tokens hardly seen so far) are raised to a hundredth of it
    when they freeze: every value travels with one magnitude, which they would blow up. A parameter that has had no
    gradient by then stays as it is.

    States: exp_avg, exp_avg_sq; what compression has left over is each rank's own (rank_state).
    """

    def __init__(
        self, params, lr: float = 1e-3, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        freeze_step: int = 400,
    ):  # fmt: skip
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "freeze_step": freeze_step, "step": 0})
        self._engine = None
        self._exchange: SignExchange | None = None

    def attach(self, engine) -> None:
        """Make the engine leave averaging to this optimizer when its time has come."""
        self._engine = engine
        self._take_over()

    @property
    def frozen(self) -> bool:
        """Whether the next step is one of the second phase."""
        group = self.param_groups[0]
        return group["step"] >= group["freeze_step"]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        frozen = self.frozen
        for group in self.param_groups:
            group["step"] += 1
        trained = list(self._trained(frozen))
        for group, parameter in trained:
            self._accumulate(parameter, group, frozen)
        if frozen and mpu.get_data_parallel_world_size() > 1:
            self._average([self.state[parameter]["exp_avg"] for _, parameter in trained])
        for group, parameter in trained:
            _apply(parameter, self.state[parameter], group)
        if self.frozen and not frozen:
            for _, parameter in trained:
                _raise(self.state[parameter]["exp_avg_sq"], parameter)
            self._take_over()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._take_over()

    def rank_state(self) -> dict:
        """What this rank alone knows, for a checkpoint; empty before the second phase."""
        return {} if self._exchange is None else self._exchange.state()

    def load_rank_state(self, state: dict) -> None:
        """Go on with what rank_state gave."""
        if state:
            self._exchange = self._make_exchange([parameter for _, parameter in self._trained(frozen=True)])
            self._exchange.load(state)

    def _trained(self, frozen: bool) -> Iterator[tuple[dict, torch.nn.Parameter]]:
        """(group, parameter) of all that are updated: in the second phase the same ones on all ranks."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None or (frozen and parameter.requires_grad):
                    yield group, parameter

    def _accumulate(self, parameter: torch.nn.Parameter, group: dict, frozen: bool) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.full_like(parameter, torch.inf if frozen else 0.0)
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        state["exp_avg"].lerp_(gradient, 1 - first)
        if not frozen:
            state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)

    def _average(self, momenta: list[torch.Tensor]) -> None:
        if self._exchange is None:
            self._exchange = self._make_exchange(momenta)
        for momentum, average in zip(momenta, self._exchange(momenta), strict=True):
            momentum.copy_(average.view_as(momentum))

    @staticmethod
    def _make_exchange(like: list[torch.Tensor]) -> SignExchange:
        return SignExchange(
            [tensor.numel() for tensor in like], mpu.get_data_parallel_group(), like[0].device
        )

    def _take_over(self) -> None:
        if self._engine is not None and self.frozen:
            for switch in _AVERAGING:
                setattr(self._engine, switch, False)


def _apply(parameter: torch.Tensor, state: dict, group: dict) -> None:
    (first, second), step = group["betas"], group["step"]
    scale = (1 - second ** min(step, max(1, group["freeze_step"]))) ** 0.5
    denominator = state["exp_avg_sq"].sqrt().div_(scale).add_(group["eps"])
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - first**step))


def _raise(squares: torch.Tensor, parameter: torch.nn.Parameter) -> None:
    mean = squares.mean()
    if getattr(parameter, "model_parallel", False) and mpu.get_model_parallel_world_size() > 1:
        mean = collectives.all_reduce(mean) / mpu.get_model_parallel_world_size()
    squares.clamp_(min=mean.item() / 100 or torch.inf)


_REDUCED = "its second phase exchanges momentum of gradients that"


@register(
    "optimizer",
    "onebitadam",
    capabilities=Capabilities(states=3),
    lacks={
        **{f"zero {stage}": f"{_REDUCED} ZeRO would have averaged before" for stage in (1, 2, 3)},
        "16-bit precision": f"{_REDUCED} ZeRO, where 16-bit runs keep their fp32 weights, has averaged before",
        **NO_MUP,
    },
    example={"optimizer": {"type": "onebitadam", "params": {"lr": 1e-3, "freeze_step": 2}}},
)
def build(param_groups: list[dict], params: dict):
    # Only DeepSpeed's implementation had a choice of how to communicate.
    settings = {key: value for key, value in params.items() if key not in ("cuda_aware", "comm_backend_name")}
    return OneBitAdam(param_groups, **settings)

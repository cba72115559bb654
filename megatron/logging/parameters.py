"""What the log says about single parameters: norms of gradients, values and optimizer states, shares of zeros."""

import torch

from megatron import mpu
from megatron.engine.exchange import all_gather_json
from megatron.engine.parts import EngineParts, before_step


class ParameterReport:
    """Measures at the steps that are logged, and only what is asked for; the others cost nothing.

    Args: engine: DeepSpeed's, whose optimizer step is watched; interval: iterations between log lines; gradient_norms,
        zeros, parameter_norms, state_norms: what to measure.
    """

    def __init__(
        self,
        engine,
        interval: int,
        gradient_norms: bool,
        zeros: bool,
        parameter_norms: bool,
        state_norms: bool,
    ):
        self._engine, self._interval = engine, interval
        self._gradient_norms, self._zeros = gradient_norms, zeros
        self._parameter_norms, self._state_norms = parameter_norms, state_norms
        self._parts = EngineParts(engine)
        self._gradients: dict[str, float] = {}
        if gradient_norms or zeros:
            before_step(engine, self._look_at_gradients)

    @classmethod
    def from_config(cls, neox_args, engine) -> "ParameterReport | None":
        """None if nothing is asked for."""
        wanted = (
            neox_args.log_grad_norm,
            neox_args.log_grad_pct_zeros,
            neox_args.log_param_norm,
            neox_args.log_optimizer_states,
        )
        return cls(engine, neox_args.log_interval, *wanted) if any(wanted) else None

    def tags(self) -> dict[str, float]:
        """{tag: value} of the step just taken, the same on all ranks; collective over all of them."""
        found, self._gradients = self._gradients, {}
        named = list(self._parts.named_parameters())
        if self._parameter_norms:
            values = [(parameter, _square(self._parts.value(parameter))) for _, parameter in named]
            found |= self._norms("parameter_norms/", named, values)
        if self._state_norms:
            for kind in self._parts.state_kinds():
                values = [(parameter, _square(self._parts.state(parameter, kind))) for _, parameter in named]
                found |= self._norms(f"optimizer_state_norms/{kind}_", named, values)
        found = {
            tag: value
            for part in all_gather_json(found, mpu.get_pipe_parallel_group())
            for tag, value in part.items()
        }
        norms = [value for tag, value in found.items() if tag.startswith("gradient_norms/")]
        if norms:
            found["train/grad_norm"] = sum(norm**2 for norm in norms) ** 0.5
        return found

    def _norms(self, prefix: str, named: list, values: list) -> dict[str, float]:
        norms = self._parts.logical_sums(values)[:, 0].sqrt().tolist()
        return {f"{prefix}{name}": norm for (name, _), norm in zip(named, norms, strict=True)}

    def _look_at_gradients(self) -> None:
        if (self._engine.global_steps + 1) % self._interval:
            return
        named = list(self._parts.named_parameters())
        values = []
        for _, parameter in named:
            gradient = self._parts.gradient(parameter)
            zeros = (gradient == 0).sum().float().reshape(1)
            # fp32 counts exactly up to 2^24 only; a mean does not need more.
            numel = torch.full_like(zeros, gradient.numel())
            values.append((parameter, torch.cat([_square(gradient), zeros, numel])))
        squares, zeros, numels = self._parts.logical_sums(values).double().unbind(1)
        names = [name for name, _ in named]
        if self._gradient_norms:
            self._gradients |= _tagged("gradient_norms/", names, squares.sqrt())
        if self._zeros:
            self._gradients |= _tagged("pct_grad_zeros/", names, 100 * zeros / numels.clamp(min=1))


def _square(part: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(part).square().reshape(1) if part.numel() else part.new_zeros(1)


def _tagged(prefix: str, names: list[str], values: torch.Tensor) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in zip(names, values.tolist(), strict=True)}

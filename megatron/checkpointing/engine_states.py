"""Setting the optimizer states behind a DeepSpeed engine by parameter, whatever ZeRO stage keeps them."""

import inspect

import torch

from megatron.checkpointing.saved_optimizer import MASTER
from megatron.common.errors import CheckpointError
from megatron.optimizers.pieces import PiecewiseOptimizer
from megatron.optimizers.sm3 import SM3


class EngineStates:
    """The optimizer of an engine as if `steps` steps had been taken, with states that are to be filled.

    Attributes: kinds: the tensors it keeps for a parameter, of the parameter's shape (exp_avg, ...); of some optimizers
    only for certain parameters.
    """

    def __init__(self, engine, steps: int):
        self._wrapped = engine.optimizer
        self._optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self.kinds: set[str] = set()
        for group, tensors in self._flat_tensors():
            sample = _sample(self._optimizer, group, tensors[0].device)
            self.kinds |= {kind for kind, value in sample.items() if _by_value(value)}
            for tensor in tensors:
                self._optimizer.state[tensor] = {
                    kind: _blank(kind, sample[kind], tensor, steps) for kind in sample
                }
        for group in self._optimizer.param_groups:
            if "step" in group:
                group["step"] = steps
        self._covers = self._find_covers()
        if hasattr(self._wrapped, "_lazy_init_hp_params_optimizer_state"):
            # ZeRO 1 and 2 look up a parameter's part of the states once, normally after the first step.
            self._wrapped._hp_optimizer_states_linked = False
            self._wrapped._lazy_init_hp_params_optimizer_state()

    def _flat_tensors(self) -> list[tuple[dict, list[torch.Tensor]]]:
        """(group, what the inner optimizer updates): parameters, or with ZeRO flat partitions of their fp32 copies."""
        groups = self._optimizer.param_groups
        if hasattr(self._wrapped, "fp32_partitioned_groups_flat"):
            return [(groups[0], self._wrapped.fp32_partitioned_groups_flat)]
        return [(group, group["params"]) for group in groups]

    def _find_covers(self) -> dict[int, list[torch.Tensor]]:
        """{id of a parameter: its states with one value for each index of a dimension}. Collective."""
        if not isinstance(self._optimizer, SM3):
            return {}
        found = (pair for group in self._optimizer.param_groups for pair in self._optimizer.covers(group))
        return {id(parameter): cover for parameter, cover in found}

    def check(self, saved_kinds: set[str], origin: str) -> None:
        """Raises: CheckpointError if a checkpoint lacks something that this optimizer needs."""
        if missing := sorted(self.kinds - saved_kinds):
            found = ", ".join(sorted(saved_kinds - {MASTER})) or "nothing"
            raise CheckpointError(
                f"{origin} keeps {found} for each parameter, but optimizer {type(self._optimizer).__name__} needs "
                f"{', '.join(missing)}: set no_load_optim or finetune"
            )

    @staticmethod
    def holds(parameter: torch.nn.Parameter) -> bool:
        """Whether this rank keeps any of a parameter's states; ZeRO may have given all to others."""
        return getattr(parameter, "_hp_mapping", parameter) is not None

    def put(self, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """Set the fp32 copy (MASTER) or a state of a parameter; `value` fp32 of this rank's whole part."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
        from deepspeed.utils.tensor_fragment import safe_set_local_fp32_param, safe_set_local_optimizer_state

        value = value.float()
        if hasattr(parameter, "ds_id"):
            value = _partition(parameter, value)
            if kind == MASTER:
                safe_set_local_fp32_param(parameter, value)
            else:
                safe_set_local_optimizer_state(parameter, value, kind)
        elif hasattr(parameter, "_hp_mapping"):
            if kind == MASTER:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, kind)
        elif kind != MASTER:
            self._optimizer.state[parameter][kind].copy_(value)

    def put_cover(self, parameter: torch.nn.Parameter, dim: int, value: torch.Tensor) -> None:
        """Set the state of a dimension, unless other ranks hold it."""
        if id(parameter) in self._covers:
            self._covers[id(parameter)][dim].copy_(value)

    def set_steps(self, parameter: torch.nn.Parameter, steps: int) -> None:
        """Where steps are counted by parameter, those of one that has had a gradient less often than others."""
        state = self._optimizer.state.get(parameter, {})
        if "step" in state:
            state["step"] = torch.full_like(state["step"], steps) if torch.is_tensor(state["step"]) else steps

    def forget(self, parameter: torch.nn.Parameter) -> None:
        """Leave a parameter as one that has had no gradient yet."""
        self._optimizer.state.pop(parameter, None)

    def set_loss_scale(self, scaler: dict) -> None:
        """Go on with a dynamic loss scale; a static one stays what the config says."""
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        own = getattr(self._wrapped, "loss_scaler", None)
        if isinstance(own, DynamicLossScaler):
            for name, value in scaler.items():
                setattr(own, name, value)


def _sample(optimizer: torch.optim.Optimizer, group: dict, device: torch.device) -> dict:
    """What an optimizer keeps for a parameter of two numbers in a group."""
    if isinstance(optimizer, PiecewiseOptimizer):
        return optimizer.sample_state(group, device)
    return _state_of_two_numbers(optimizer, device)


def _state_of_two_numbers(optimizer: torch.optim.Optimizer, device: torch.device) -> dict:
    """Learnt from a step of another optimizer of the same kind."""
    parameter = torch.nn.Parameter(torch.zeros(2, device=device))
    parameter.grad = torch.zeros_like(parameter)
    accepted = inspect.signature(type(optimizer)).parameters
    twin = type(optimizer)([parameter], **{k: v for k, v in optimizer.defaults.items() if k in accepted})
    twin.step()
    return dict(twin.state[parameter])


def _by_value(value) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == (2,)


def _blank(kind: str, sample, tensor: torch.Tensor, steps: int):
    if _by_value(sample):
        return torch.zeros_like(tensor, dtype=sample.dtype)
    if kind == "step":
        return torch.full_like(sample, steps) if isinstance(sample, torch.Tensor) else steps
    return sample


def _partition(parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """This data-parallel rank's part of a value, padded with zeros, as ZeRO-3 cuts it."""
    size = parameter.ds_tensor.ds_numel
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    part = value.flatten()[start : start + size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))

"""What belongs to a parameter, as far as this rank holds it: its gradient, its fp32 value, its optimizer states.

Replicas hold the same whole values, unless ZeRO has cut them into disjoint parts. Sums over the logical parameters of
the model come out the same in every layout.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from megatron import mpu
from megatron.common import device


def before_step(engine, action: Callable[[], None]) -> None:
    """Call `action` before every optimizer step, when gradients are averaged over replicas and micro-batches, but
    neither clipped nor freed from fp16's loss scale."""
    take_step = engine._take_model_step

    def act_and_step(*args, **kwargs):
        action()
        return take_step(*args, **kwargs)

    engine._take_model_step = act_and_step


def around_step(engine, context: Callable[[], AbstractContextManager]) -> None:
    """Enter a context around every optimizer step, outside of which no weight changes."""
    take_step = engine._take_model_step

    def step_within(*args, **kwargs):
        with context():
            return take_step(*args, **kwargs)

    engine._take_model_step = step_within


def counts(parameter: torch.nn.Parameter) -> bool:
    """Whether this rank's copy is the one that counts in a sum: sharded parameters on every tensor-parallel rank,
    replicated ones on rank 0, tied ones on the first stage that holds them."""
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return parameter.model_parallel or mpu.get_tensor_model_parallel_rank() == 0


class EngineParts:
    """Parts of this rank, flat, on its device, also where they are kept in host memory.

    Args: engine: DeepSpeed's, with an optimizer.
    """

    def __init__(self, engine):
        self._engine = engine
        self.partitioned = engine.zero_optimization_stage() > 0

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(logical name, parameter) of this stage, tied ones on the first that holds them only."""
        for name, parameter in self._engine.module.logical_named_parameters():
            if parameter.requires_grad and not getattr(parameter, "ds_pipe_replicated", False):
                yield name, parameter

    def gradient(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The gradient in fp32, without fp16's loss scale; to be asked for within before_step."""
        from deepspeed.utils.tensor_fragment import safe_get_local_grad

        if hasattr(parameter, "ds_id"):
            part = _without_padding(parameter, safe_get_local_grad(parameter))
        elif not hasattr(parameter, "_hp_mapping"):
            part = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        elif parameter._hp_mapping is None:
            part = parameter.new_empty(0)
        else:
            mapping = parameter._hp_mapping
            part = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
            address = mapping.lp_fragment_address
            if part.numel() != address.numel:
                # DeepSpeed's bf16 optimizer keeps the whole gradient on every rank.
                part = part.narrow(0, address.start, address.numel)
        scale = float(getattr(self._engine.optimizer, "loss_scale", 1.0))
        part = _here(part)
        return part if scale == 1.0 else part / scale

    def value(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The value that the optimizer works on, in fp32."""
        from deepspeed.utils.tensor_fragment import safe_get_local_fp32_param

        if hasattr(parameter, "ds_id"):
            return _here(_without_padding(parameter, safe_get_local_fp32_param(parameter)))
        if not hasattr(parameter, "_hp_mapping"):
            return _here(parameter)
        mapping = parameter._hp_mapping
        return _here(parameter.new_empty(0) if mapping is None else mapping.get_hp_fragment())

    def state_kinds(self) -> list[str]:
        """Names of the optimizer's states that have a number for each value of what they belong to; none before the
        first step. To be asked for before `state`."""
        wrapped = self._engine.optimizer
        if hasattr(wrapped, "_lazy_init_hp_params_optimizer_state"):
            # DeepSpeed looks parts of states up once, in the first step, when it has states of the first group only.
            wrapped._hp_optimizer_states_linked = False
            wrapped._lazy_init_hp_params_optimizer_state()
        inner = getattr(wrapped, "optimizer", wrapped)
        kinds = {
            kind
            for tensor, states in inner.state.items()
            for kind, state in states.items()
            # What is kept in eight bits is a code, not a number.
            if isinstance(state, torch.Tensor) and state.is_floating_point()
            if state.shape == tensor.shape and state.dim()
        }
        return sorted(kinds)

    def state(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """A state of the optimizer, in fp32; empty for a parameter without it."""
        from deepspeed.utils.tensor_fragment import safe_get_local_optimizer_state

        if hasattr(parameter, "ds_id"):
            return _here(_without_padding(parameter, safe_get_local_optimizer_state(parameter, kind)))
        nothing = parameter.new_empty(0)
        if not hasattr(parameter, "_hp_mapping"):
            inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
            return _here(inner.state.get(parameter, {}).get(kind, nothing))
        mapping = parameter._hp_mapping
        known = mapping is not None and kind in mapping.get_optim_state_keys()
        return _here(mapping.get_hp_fragment(kind) if known else nothing)

    def logical_sums(self, values: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> torch.Tensor:
        """Sums over the replicas' parts and the tensor-parallel slices, the same on all ranks of the stage.

        Args: values: (parameter, fp32 [k] from this rank's part), the same parameters in the same order on all ranks of
        the stage. Returns: fp32 [len(values), k]; k is 3 if there are none.
        """
        if not values:  # a pipeline stage where nothing trains
            return torch.zeros(0, 3, device=device.current_device())
        rows = torch.stack(
            [value if counts(parameter) else torch.zeros_like(value) for parameter, value in values]
        )
        if self.partitioned and mpu.get_data_parallel_world_size() > 1:
            torch.distributed.all_reduce(rows, group=mpu.get_data_parallel_group())
        if mpu.get_tensor_model_parallel_world_size() > 1:
            torch.distributed.all_reduce(rows, group=mpu.get_tensor_model_parallel_group())
        return rows


def _here(part: torch.Tensor) -> torch.Tensor:
    """Flat, fp32, on this rank's device, where the ranks can add up what is computed of it; ZeRO may keep masters,
    states and gradients in host memory."""
    return part.detach().to(device.current_device(), torch.float32).flatten()


def _without_padding(parameter: torch.nn.Parameter, part: torch.Tensor) -> torch.Tensor:
    """ZeRO-3 pads a parameter so that all replicas have equally much of it."""
    size = parameter.ds_tensor.ds_numel
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    own = max(0, min(size, parameter.ds_numel - start))
    return part.detach().float().flatten()[:own]

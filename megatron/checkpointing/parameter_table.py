"""What a checkpoint says about its own parameters, so that any other layout can read it.

Every file of a model rank holds `parameters`: {logical name: {shape, logical_shape, shard_dim, blocks, vocabulary}} of
that rank, and `optimizer_groups`: the names in the order in which the optimizer's files have their values.
"""

from collections.abc import Iterable

import torch

from megatron.mpu import ParameterSpec

PARAMETERS, GROUPS = "parameters", "optimizer_groups"
# Where DeepSpeed's ZeRO and bf16 optimizers keep the parameters of each group, in the order of their flat tensors.
_GROUPS_OF_WRAPPERS = ("round_robin_bit16_groups", "bf16_groups", "fp16_groups")


def parameter_table(engine) -> dict:
    """The two entries for the parameters of this rank."""
    named = {id(parameter): (name, parameter) for name, parameter in engine.module.logical_named_parameters()}
    groups = []
    for members in _groups(engine.optimizer):
        for parameter in members:
            # The only member of a group that has none on this stage; it has no part in the model.
            named.setdefault(id(parameter), (f"anchor{len(named)}", parameter))
        groups.append([named[id(parameter)][0] for parameter in members])
    return {
        PARAMETERS: {
            name: describe(parameter.spec, shape_of(parameter)) for name, parameter in named.values()
        },
        GROUPS: groups,
    }


def shape_of(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of a parameter, which ZeRO-3 may have partitioned."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def describe(spec: ParameterSpec, shape: Iterable[int]) -> dict:
    """An entry of `parameters`. shape: of this tensor rank's part."""
    return {
        "shape": list(shape),
        "logical_shape": list(spec.logical_shape),
        "shard_dim": spec.shard_dim,
        "blocks": list(spec.blocks),
        "vocabulary": spec.vocabulary,
    }


def _groups(optimizer) -> list[list[torch.nn.Parameter]]:
    for attribute in _GROUPS_OF_WRAPPERS:
        if hasattr(optimizer, attribute):
            return getattr(optimizer, attribute)
    return [group["params"] for group in getattr(optimizer, "param_groups", [])]


def saved_groups(state: dict) -> list[dict[str, tuple[int, ...]]]:
    """{name: shape} of each optimizer group, from the file of a model rank; empty if it does not say."""
    parameters = state.get(PARAMETERS, {})
    return [{name: tuple(parameters[name]["shape"]) for name in names} for names in state.get(GROUPS, [])]

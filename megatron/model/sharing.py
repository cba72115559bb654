"""Parameters that several layers have in common (ALBERT, arXiv 1909.11942; the relative positions of T5, 1910.10683).

Every layer keeps modules of its own, and with them its number, its attention pattern and its cache; only the parameters
inside are the same objects. Where the layers lie on several pipeline stages each stage has a copy. All copies start
equal, being drawn under one logical name (that of the first layer), and stay equal, since their gradients are summed
over the stages.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch

from megatron.common.errors import ConfigError
from megatron.mpu.parameters import ParameterSpec

FIRST_BLOCK = 2  # index of the first block among the layers of a model


def owning_layers(neox_args) -> dict[int, int]:
    """{layer index of a block: index of the first layer with its parameters}; empty if no blocks are shared.

    `grouped` gives 0 0 1 1, `spaced` 0 1 0 1.
    """
    unique, count = neox_args.num_unique_layers, neox_args.num_layers
    if unique is None:
        return {}
    repeats = count // unique
    grouped = neox_args.param_sharing_style == "grouped"
    first = [number // repeats * repeats if grouped else number % unique for number in range(count)]
    return {FIRST_BLOCK + number: FIRST_BLOCK + owner for number, owner in enumerate(first)}


def number_of_values(neox_args, layer_number: int) -> int:
    """The number, from 0, of the block whose initial values a block has: of the first one with its parameters, so that
    values which follow from a number are the same on every pipeline stage."""
    index = FIRST_BLOCK + layer_number
    return owning_layers(neox_args).get(index, index) - FIRST_BLOCK


def shared_key(index: int, path: str, spec: ParameterSpec, owners: Mapping[int, int]) -> str | None:
    """What the parameter `path` of a layer has in common with all parameters that are the same one; None for a
    parameter of this layer alone."""
    if spec.shared:
        return spec.shared
    return f"{owners[index]}.{path}" if index in owners else None


def link_parameters(
    layers: Iterable[tuple[int, torch.nn.Module]], owners: Mapping[int, int]
) -> dict[str, torch.nn.Parameter]:
    """Let the layers of this process, given with their indices, have their common parameters in common: {key: it}.

    Each gets an attribute shared_name, its logical name, that of its first place.
    Raises: ConfigError for blocks that are to share their parameters and have different ones.
    """
    found: dict[str, torch.nn.Parameter] = {}
    paths: dict[int, tuple[int, set[str]]] = {}
    for index, layer in layers:
        own = {path for path, _ in layer.named_parameters()}
        if index in owners:
            other, expected = paths.setdefault(owners[index], (index, own))
            if own != expected:
                raise _unlike(other, index)
        for path in sorted(own):
            module, name = layer.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            parameter = module._parameters[name]
            key = shared_key(index, path, parameter.spec, owners)
            if key is None:
                continue
            first = found.setdefault(key, parameter)
            if first.shape != parameter.shape:
                raise _unlike(owners.get(index, index), index)
            if not hasattr(first, "shared_name"):
                first.shared_name = f"{index}.{path}"
            module._parameters[name] = first
    return found


def _unlike(index: int, other: int) -> ConfigError:
    return ConfigError(
        f"num_unique_layers lets blocks {index - FIRST_BLOCK} and {other - FIRST_BLOCK} share their parameters, but "
        "they are of different kinds: choose attention_config, moe_expert_interval or param_sharing_style accordingly"
    )


def each_once(
    placed: Iterable[tuple[str, torch.nn.Parameter]],
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(logical name, parameter), once for a parameter that has several places."""
    seen: set[int] = set()
    for name, parameter in placed:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield getattr(parameter, "shared_name", name), parameter


def connect_stages(
    own: Mapping[str, torch.nn.Parameter], stage: int, pipelines: list[list[int]]
) -> list[tuple[torch.nn.Parameter, object]]:
    """Make the copies on all pipeline stages one parameter: give them one name, and let gradient norms count the first.

    Args: own: the result of link_parameters; pipelines: the ranks of every pipeline, in the order of the stages.
    Returns: [(parameter, group of the ranks with a copy)], over which gradients are to be summed, in the same order on
    all ranks. Collective over all ranks.
    """
    names = {key: parameter.shared_name for key, parameter in own.items()}
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, names)
    by_stage = [gathered[rank] for rank in pipelines[0]]
    holders = {
        key: tuple(number for number, found in enumerate(by_stage) if key in found)
        for key in sorted({key for found in by_stage for key in found})
    }
    groups = {}
    for stages in sorted(set(holders.values())):
        for ranks in ([pipeline[number] for number in stages] for pipeline in pipelines):
            if len(stages) > 1:
                group = torch.distributed.new_group(ranks)
                if torch.distributed.get_rank() in ranks:
                    groups[stages] = group
    connected = []
    for key, stages in holders.items():
        if key in own and len(stages) > 1:
            own[key].shared_name = by_stage[stages[0]][key]
            own[key].ds_pipe_replicated = stage != stages[0]
            connected.append((own[key], groups[stages]))
    return connected

"""The model's parameters, counted on the layers themselves (built without storage), and their place in the pipeline."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.utils import partition_balanced, partition_uniform

from megatron import mpu
from megatron.model.layers import ModuleSpec, TiedSpec, layer_name, layer_specs
from megatron.model.sharing import owning_layers, shared_key


@dataclass(frozen=True)
class Layer:
    """One layer. whole: {parameter: its numbers in a single process}, where a parameter that other layers share has the
    same name in each; local: the same on one tensor-parallel rank."""

    name: str
    whole: dict[str, int]
    local: dict[str, int]

    @property
    def size(self) -> int:
        """Parameters in a single process."""
        return sum(self.whole.values())


def count_layers(neox_args: Any) -> list[Layer]:
    """All layers of the model of a configuration whose padded_vocab_size is set."""
    with torch.device("meta"), mpu.deferred_initialization(), torch.no_grad():
        owners = owning_layers(neox_args)
        specs = enumerate(layer_specs(neox_args))
        return [_count(index, spec, owners, neox_args.model_parallel_size) for index, spec in specs]


def total_parameters(layers: list[Layer]) -> int:
    """Parameters of the model, shared ones once."""
    return sum(_united(layer.whole for layer in layers).values())


def local_parameters(layers: list[Layer]) -> int:
    """Parameters of a tensor-parallel rank that has these layers, shared ones once."""
    return sum(_united(layer.local for layer in layers).values())


def _united(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return {name: count for layer in counts for name, count in layer.items()}


def stages(layers: list[Layer], count: int, method: str) -> list[list[Layer]]:
    """The layers of each pipeline stage, divided as DeepSpeed's PipelineModule does."""
    method = method.lower()
    if count <= 1:
        bounds = [0, len(layers)]
    elif method == "uniform":
        bounds = partition_uniform(len(layers), count)
    elif method == "parameters":
        bounds = partition_balanced([layer.size for layer in layers], count)
    else:
        bounds = partition_balanced(_matches(layers, method.removeprefix("type:")), count)
    return [layers[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]


def _count(index: int, spec: Any, owners: dict[int, int], model_parallel_size: int) -> Layer:
    if not isinstance(spec, ModuleSpec):
        return Layer(layer_name(spec), {}, {})
    place = 0 if isinstance(spec, TiedSpec) else index
    specs = {
        shared_key(place, path, parameter.spec, owners) or f"{place}.{path}": parameter.spec
        for path, parameter in spec.build().named_parameters()
    }
    return Layer(
        name=layer_name(spec),
        whole={name: _numel(found.logical_shape) for name, found in specs.items()},
        local={name: _numel(found.local_shape(model_parallel_size)) for name, found in specs.items()},
    )


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _matches(layers: list[Layer], pattern: str) -> list[int]:
    return [int(bool(re.search(pattern, layer.name, re.IGNORECASE))) for layer in layers]

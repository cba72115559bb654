"""The model's parameters, counted on the layers themselves (built without storage), and their place in the pipeline."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.utils import partition_balanced, partition_uniform

from megatron import mpu
from megatron.model.layers import ModuleSpec, TiedSpec, layer_specs


@dataclass(frozen=True)
class Layer:
    """One layer. whole: parameters in a single process; local: on one tensor-parallel rank; is_copy: its parameters are
    those of an earlier layer (tied embeddings)."""

    name: str
    whole: int
    local: int
    is_copy: bool = False


def count_layers(neox_args: Any) -> list[Layer]:
    """All layers of the model of a configuration whose padded_vocab_size is set."""
    with torch.device("meta"), mpu.deferred_initialization(), torch.no_grad():
        return [_count(spec, neox_args.model_parallel_size) for spec in layer_specs(neox_args)]


def total_parameters(layers: list[Layer]) -> int:
    """Parameters of the model, shared ones once."""
    return sum(layer.whole for layer in layers if not layer.is_copy)


def stages(layers: list[Layer], count: int, method: str) -> list[list[Layer]]:
    """The layers of each pipeline stage, divided as DeepSpeed's PipelineModule does."""
    method = method.lower()
    if count <= 1:
        bounds = [0, len(layers)]
    elif method == "uniform":
        bounds = partition_uniform(len(layers), count)
    elif method == "parameters":
        bounds = partition_balanced([layer.whole for layer in layers], count)
    else:
        bounds = partition_balanced(_matches(layers, method.removeprefix("type:")), count)
    return [layers[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]


def _count(spec: Any, model_parallel_size: int) -> Layer:
    if not isinstance(spec, ModuleSpec):
        return Layer(spec.__name__, 0, 0)
    is_copy = isinstance(spec, TiedSpec) and spec.function is not None
    parameters = list(spec.build().parameters())
    return Layer(
        name=spec.module_class.__name__,
        whole=sum(parameter.numel() for parameter in parameters),
        local=sum(_numel(parameter.spec.local_shape(model_parallel_size)) for parameter in parameters),
        is_copy=is_copy,
    )


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _matches(layers: list[Layer], pattern: str) -> list[int]:
    found = [int(bool(re.search(pattern, layer.name, re.IGNORECASE))) for layer in layers]
    return found if any(found) else [1] * len(layers)

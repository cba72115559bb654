"""The model without a pipeline."""

import functools
from collections.abc import Callable

import torch

from megatron import mpu
from megatron.model.layers import ModuleSpec, TiedSpec, layer_specs
from megatron.model.mup import apply_base_shapes
from megatron.model.sharing import link_parameters, owning_layers
from megatron.model.utils import SequentialWrapper, TiedLayer, mark_norms_for_sequence_parallel_grad_sync
from megatron.neox_arguments.soft_prompt import SoftPrompt


def checkpoint_function(neox_args) -> Callable:
    """mpu.checkpoint for the activations of this config."""
    return functools.partial(mpu.checkpoint, replicated=not neox_args.sequence_parallel)


def checkpoint_interval(neox_args) -> int:
    """Blocks per recomputed stretch; 0 for none."""
    return neox_args.checkpoint_num_layers if neox_args.checkpoint_activations else 0


def build_sequential(
    neox_args, parallel_output: bool = True, num_tokentypes: int = 0, use_cache: bool = False
) -> SequentialWrapper:
    """The model of a config on torch's default device, fp32, initialised.

    Args:
        parallel_output: in training, logits stay cut over the tensor-parallel ranks.
        use_cache: start with a key-value cache (see inference_mode).
    """
    with mpu.deferred_initialization():
        layers = _build_layers(layer_specs(neox_args, parallel_output, num_tokentypes, use_cache))
    model = SequentialWrapper(
        layers,
        checkpoint_interval(neox_args),
        checkpoint_function(neox_args),
        parallel_output=parallel_output,
    )
    link_parameters(enumerate(model.sequential), owning_layers(neox_args))
    finish_model(model, neox_args)
    return model


def _build_layers(specs: list[ModuleSpec | Callable]) -> list[Callable]:
    shared: dict[str, torch.nn.Module] = {}
    layers: list[Callable] = []
    for spec in specs:
        if isinstance(spec, TiedSpec):
            if spec.key not in shared:
                shared[spec.key] = spec.build()
            module = shared[spec.key]
            layers.append(module if spec.function is None else TiedLayer(spec.function, module))
        else:
            layers.append(spec.build() if isinstance(spec, ModuleSpec) else spec)
    return layers


def finish_model(model, neox_args) -> None:
    """Initial values and gradient hooks of a model just built."""
    if neox_args.use_mup:
        apply_base_shapes(model, neox_args)
    mpu.initialize_parameters(
        model.logical_named_parameters(), neox_args.seed, neox_args.use_cpu_initialization
    )
    mark_norms_for_sequence_parallel_grad_sync(model, neox_args)
    if SoftPrompt.from_config(neox_args) is not None:
        begin_prompt_tuning(model)


def begin_prompt_tuning(model: torch.nn.Module) -> None:
    """Freeze everything but the prompt, and give it its first value."""
    for name, parameter in model.named_parameters():
        if not name.endswith("soft_embedding_weight"):
            parameter.requires_grad = False
        elif parameter.start is not None and not parameter.is_meta:
            parameter.start()

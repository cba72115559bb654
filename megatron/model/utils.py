"""Running a list of layers, and what optimizers and gradient reductions need to know about their parameters."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from megatron import mpu
from megatron.model.decoding_state import decoding_states
from megatron.model.norms import norm_classes
from megatron.model.sharing import each_once
from megatron.mpu import collectives
from megatron.mpu.parameters import zeros_

NORM_CLASSES = norm_classes()


def exists(x: Any) -> bool:
    return x is not None


class Lambda(torch.nn.Module):
    """A function as a layer."""

    def __init__(self, func: Callable):
        super().__init__()
        self.func = func

    def forward(self, x):
        return self.func(x)


class TiedLayer:
    """function(module, inputs) as a layer; the module's parameters stay with the layer that owns it."""

    def __init__(self, function: Callable, module: torch.nn.Module):
        self.function, self.module = function, module

    def __call__(self, inputs: Any) -> Any:
        return self.function(self.module, inputs)


def recursive_setattr(
    m: torch.nn.Module,
    attr: str,
    value: Any,
    assert_type: type | None = None,
    type_filter: type | None = None,
) -> None:
    """Set `attr` of m and all modules inside that have it.

    Args: assert_type: type that the present value must have; type_filter: only on modules of this class.
    """
    for module in m.modules():
        if not hasattr(module, attr) or (type_filter is not None and not isinstance(module, type_filter)):
            continue
        assert assert_type is None or isinstance(getattr(module, attr), assert_type), (
            f"{attr} has another type"
        )
        setattr(module, attr, value)


def get_parallel_linear(neox_args) -> tuple[type, type]:
    """(column-parallel, row-parallel) linear layer classes of the config."""
    return mpu.ColumnParallelLinear, mpu.RowParallelLinear


def run_layers(
    layers: Iterable[Callable], inputs: Any, interval: int, checkpoint: Callable[..., Any] = mpu.checkpoint
) -> Any:
    """Apply layers in order. With interval > 0, neighbouring layers that have `recompute` set are recomputed in the
    backward pass, in stretches of at most `interval`.

    Args: checkpoint: like mpu.checkpoint, of a function that gives one tensor.
    """
    layers = list(layers)
    at = 0
    while at < len(layers):
        end = at + 1
        if interval > 0 and torch.is_grad_enabled() and _recomputable(layers[at]):
            while end < len(layers) and end - at < interval and _recomputable(layers[end]):
                end += 1
            stretch = _Stretch(layers[at:end])
            if isinstance(inputs, tuple):
                inputs = (checkpoint(stretch, *inputs), *inputs[1:])
            else:
                inputs = checkpoint(stretch, inputs)
        else:
            inputs = layers[at](inputs)
        at = end
    return inputs


def _recomputable(layer: Callable) -> bool:
    return getattr(layer, "recompute", False)


class _Stretch:
    """Neighbouring layers as one function of hidden states, and of what passes through them unchanged."""

    def __init__(self, layers: list[Callable]):
        self.layers = layers

    @property
    def label(self) -> str:
        """For reports: the numbers of the blocks."""
        numbers = [str(getattr(layer, "layer_number", "?")) for layer in self.layers]
        return f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {numbers[0]} to {numbers[-1]}"

    def __call__(self, hidden: torch.Tensor, *constant: torch.Tensor) -> torch.Tensor:
        inputs = (hidden, *constant) if constant else hidden
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs[0] if constant else inputs


class InferenceModes:
    """Switching a model between training and inference; mixed into the model classes.

    The class supplies output_layers(), the objects whose `parallel_output` says whether logits stay cut over the
    ranks, and has the attribute parallel_output as it was built.
    """

    def output_layers(self) -> list[Any]:
        raise NotImplementedError

    def inference_mode(self, use_cache: bool = True) -> None:
        """Evaluation mode, logits gathered over the tensor-parallel ranks, keys and values cached if asked for."""
        self.eval()
        self._set_modes(generating=True, use_cache=use_cache, parallel_output=False)

    def train_mode(self) -> None:
        """Training mode as the model was built."""
        self.train()
        self._set_modes(generating=False, use_cache=False, parallel_output=self.parallel_output)

    def _set_modes(self, generating: bool, use_cache: bool, parallel_output: bool) -> None:
        self.clear_cache()
        for part in self._sequence_parallel_parts:
            # A single new token cannot be cut over the ranks, so inference leaves the sequence whole.
            part.sequence_parallel = not generating
        for module in self.modules():
            if hasattr(module, "generating"):
                module.generating = generating
        for state in decoding_states(self):
            state.use_cache = use_cache
        for layer in self.output_layers():
            layer.parallel_output = parallel_output

    @functools.cached_property
    def _sequence_parallel_parts(self) -> list[Any]:
        """What works on a part of the sequence in training, as the model was built."""
        parts = (*self.modules(), *self.output_layers())
        return [part for part in parts if getattr(part, "sequence_parallel", False)]

    def clear_cache(self) -> None:
        """Forget what has been kept for the tokens to come."""
        for state in decoding_states(self):
            state.clear_cache()


class SequentialWrapper(InferenceModes, torch.nn.Module):
    """The model as a plain sequence of layers; state dict keys sequential.<index>.<path>.

    Args:
        layers: modules or functions of one argument.
        activation_checkpoint_interval: recompute blocks in stretches of this many; 0 never.
        activation_checkpoint_func: like mpu.checkpoint.
        parent_class_name: class of the model that the layers come from, if any.
        parallel_output: in training, logits stay cut over the tensor-parallel ranks.
    """

    def __init__(
        self,
        layers: Iterable[Callable],
        activation_checkpoint_interval: int,
        activation_checkpoint_func: Callable[..., Any],
        parent_class_name: str | None = None,
        parallel_output: bool = True,
    ):
        super().__init__()
        modules = [layer if isinstance(layer, torch.nn.Module) else Lambda(layer) for layer in layers]
        self.sequential = torch.nn.Sequential(*modules)
        self.activation_checkpoint_interval = activation_checkpoint_interval
        self.activation_checkpoint_func = activation_checkpoint_func
        self.parent_class_name = parent_class_name
        self.parallel_output = parallel_output
        self.batch_fn: Callable | None = None

    def set_batch_fn(self, fn: Callable | None) -> None:
        """Pass every input through `fn` first."""
        self.batch_fn = fn

    def output_layers(self) -> list[Any]:
        functions = [layer.func if isinstance(layer, Lambda) else layer for layer in self.sequential]
        layers = [layer.function if isinstance(layer, TiedLayer) else layer for layer in functions]
        return [layer for layer in layers if hasattr(layer, "parallel_output")]

    def logical_named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(layer index.path, parameter), the names under which every layout knows them."""
        return each_once(self.placed_named_parameters())

    def placed_named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(layer index.path, parameter); a parameter of several layers once for each."""
        yield from self.sequential.named_parameters(remove_duplicate=False)

    def forward(
        self, forward_input: tuple[torch.Tensor, torch.Tensor], curriculum_seqlen: int | None = None
    ) -> torch.Tensor:
        """(tokens, position_ids), int64 [b, s] each -> logits [b, s, V/tp], or [b, s, V] in inference.

        curriculum_seqlen: cut the sequences to this length first.
        """
        if self.batch_fn is not None:
            forward_input = self.batch_fn(forward_input)
        if curriculum_seqlen is not None:
            forward_input = tuple(tensor[:, :curriculum_seqlen].contiguous() for tensor in forward_input)
        return run_layers(
            self.sequential,
            forward_input,
            self.activation_checkpoint_interval,
            self.activation_checkpoint_func,
        )


def norms(module: torch.nn.Module) -> list[torch.nn.Module]:
    """All norms inside, of whatever kind."""
    return [found for found in module.modules() if isinstance(found, NORM_CLASSES)]


def get_params_for_weight_decay_optimization(module: torch.nn.Module, neox_args) -> list[dict[str, Any]]:
    """Optimizer groups: matrices decay; biases, norm parameters and those with `_no_weight_decay` do not.

    Returns: [{"params", "name": "weight_decay_params"}, {"params", "weight_decay": 0.0, "name":
    "no_weight_decay_params"}], without a group that has no members; with weight_decay 0 all are in one of the second
    kind. Frozen parameters are in none. With muP (see megatron.model.mup) groups have a `width_mult`, by which the
    learning rate is divided and the decay multiplied, and there is one group for each value of it.
    """
    members: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    of_norms = {id(parameter) for norm in norms(module) for parameter in norm.parameters()}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        kept = (
            id(parameter) in of_norms
            or name.split(".")[-1] == "bias"
            or hasattr(parameter, "_no_weight_decay")
        )
        decays = not kept and neox_args.weight_decay != 0.0
        members.setdefault((decays, getattr(parameter, "width_mult", 1.0)), []).append(parameter)
    groups = []
    for decays, width_mult in sorted(_keys_of_all_stages(set(members)), key=lambda key: (not key[0], key[1])):
        group: dict[str, Any] = {"params": members.get((decays, width_mult)) or [_anchor(module)]}
        group["name"] = "weight_decay_params" if decays else "no_weight_decay_params"
        if not decays:
            group["weight_decay"] = 0.0
        if neox_args.use_mup:
            group["width_mult"] = width_mult
            if decays:
                group["weight_decay"] = neox_args.weight_decay * width_mult
        groups.append(group)
    return groups


def _keys_of_all_stages(own: set) -> set:
    """The groups of any pipeline stage. All stages must have the same, since DeepSpeed reduces their norms in turn."""
    stages = mpu.get_pipe_parallel_world_size()
    if stages == 1:
        return own
    gathered: list = [None] * stages
    torch.distributed.all_gather_object(gathered, own, group=mpu.get_pipe_parallel_group())
    return set().union(*gathered)


def _anchor(module: torch.nn.Module) -> torch.nn.Parameter:
    """The only member of a group that has none on this stage: a number that nothing uses."""
    anchor = mpu.make_parameter(mpu.ParameterSpec((1,), zeros_), next(module.parameters()).device)
    module.register_parameter(f"anchor{len(list(module.parameters(recurse=False)))}", anchor)
    return anchor


def mark_norms_for_sequence_parallel_grad_sync(module: torch.nn.Module, neox_args) -> None:
    """Sum over the tensor-parallel group, once, the gradients of replicated parameters that see only a part of what
    they act on: with sequence parallelism, norms and whatever has `sequence_parallel` set (biases of row-parallel
    layers) see a part of the sequence (but a norm with `sees_all` sees it whole); what has `sees_own_heads` set sees
    the heads of its rank. Calling it again changes nothing.
    """
    if mpu.get_model_parallel_world_size() == 1:
        return
    for norm in norms(module):
        if neox_args.sequence_parallel and not hasattr(norm, "sees_all"):
            for parameter in norm.parameters():
                parameter.sequence_parallel = True
    for parameter in module.parameters():
        partial = getattr(parameter, "sequence_parallel", False) or hasattr(parameter, "sees_own_heads")
        if partial and not hasattr(parameter, "sequence_parallel_hook"):
            parameter.sequence_parallel_hook = parameter.register_hook(collectives.all_reduce)

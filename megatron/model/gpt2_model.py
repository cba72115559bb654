"""The model as a DeepSpeed pipeline, and its loss."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec

from megatron import mpu
from megatron.model.layers import (
    EMBEDDING_KEY,
    ModuleSpec,
    TiedSpec,
    gpt2_attention_mask_func,
    layer_name,
    layer_specs,
    partition_method,
)
from megatron.model.sequential import checkpoint_function, checkpoint_interval, finish_model
from megatron.model.sharing import connect_stages, each_once, link_parameters, owning_layers
from megatron.model.utils import InferenceModes, SequentialWrapper, TiedLayer, run_layers

__all__ = ["GPT2ModelPipe", "cross_entropy", "gpt2_attention_mask_func"]


def cross_entropy(
    output: torch.Tensor, labels: tuple[torch.Tensor, torch.Tensor], _fp16: bool = False
) -> torch.Tensor:
    """Mean loss of the tokens that count, a scalar; 0 if none counts.

    Args:
        output: logits [b, s, V/tp]; left unchanged.
        labels: (labels int64 [b, s], loss_mask [b, s]).
        _fp16: compute in the dtype of the logits instead of fp32.
    """
    labels, loss_mask = labels
    dtype = output.dtype if _fp16 else torch.float32
    return masked_mean(mpu.vocab_parallel_cross_entropy(output, labels, dtype), loss_mask)


def masked_mean(losses: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Mean of [b, s] where the mask is not 0, a scalar of the dtype of `losses`; 0 where nothing counts."""
    loss_mask = loss_mask.to(losses.dtype)
    count = loss_mask.sum()
    return (losses * loss_mask).sum() / torch.where(count > 0, count, torch.ones_like(count))


class _Unused(torch.autograd.Function):
    """The first argument; the others get a gradient of 0, without which DeepSpeed's optimizers fail."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, *anchors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*anchors)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *(torch.zeros_like(anchor) for anchor in ctx.saved_tensors)


class GPT2ModelPipe(InferenceModes, PipelineModule):
    """This rank's stage of the model. The class name decides how DeepSpeed treats it: an engine made from it must be
    told set_has_attention_mask(False), since only hidden states travel between stages.

    Args:
        num_tokentypes: rows of a token type table; 0 for none.
        parallel_output: in training, logits stay cut over the tensor-parallel ranks.
        topology: DeepSpeed process topology with axes pipe, data, model.
        use_cache: start with a key-value cache (see inference_mode).
        loss_fn: (logits, (labels, loss_mask)) -> scalar; may be set later.
    """

    def __init__(
        self,
        neox_args,
        num_tokentypes: int = 0,
        parallel_output: bool = True,
        topology: Any = None,
        use_cache: bool = False,
        loss_fn: Callable | None = None,
    ):
        self.neox_args = neox_args
        self.parallel_output = parallel_output
        specs = layer_specs(neox_args, parallel_output, num_tokentypes, use_cache)
        method = partition_method(neox_args, map(layer_name, specs))
        default_loss = functools.partial(cross_entropy, _fp16=neox_args.fp16_lm_cross_entropy)
        # DeepSpeed prints the layer table from its constructor.
        with mpu.deferred_initialization(), contextlib.redirect_stdout(io.StringIO()):
            super().__init__(
                layers=[_deepspeed_spec(spec) for spec in specs],
                loss_fn=loss_fn or default_loss,
                topology=topology,
                partition_method=method,
            )
        self.recompute_interval = checkpoint_interval(neox_args)
        self.checkpoint = checkpoint_function(neox_args)
        self._drop_unused_embeddings()
        self._shared_over_stages = self._share_parameters()
        finish_model(self, neox_args)

    def _drop_unused_embeddings(self) -> None:
        """On a last stage that has a copy of the embedding for its output only, keep only what the output uses."""
        if EMBEDDING_KEY in self.tied_modules and self._local_start > 0:
            embedding = self.tied_modules[EMBEDDING_KEY]
            embedding.position_embeddings = None
            embedding.tokentype_embeddings = None
            embedding.soft_prompt = None
            embedding.norm = embedding.project_in = None

    def _share_parameters(self) -> list[tuple[torch.nn.Parameter, Any]]:
        """What the stages have to sum the gradients of, besides the embedding: see connect_stages."""
        blocks = ((int(name), module) for name, module in self.named_children() if name.isdigit())
        own = link_parameters(blocks, owning_layers(self.neox_args))
        if self.num_stages == 1:
            return []
        return connect_stages(own, self.stage_id, self.topology().get_axis_comm_lists("pipe"))

    def get_tied_weights_and_groups(self) -> list[tuple[torch.nn.Parameter, Any]]:
        """(parameter, group): what DeepSpeed's engine sums the gradients of over the stages that hold it."""
        shared = super().get_tied_weights_and_groups() + self._shared_over_stages
        return [(parameter, group) for parameter, group in shared if parameter.requires_grad]

    def forward(self, forward_input: Any) -> torch.Tensor:
        """This stage's layers; recomputation per block instead of DeepSpeed's per fixed stretch of all layers."""
        output = run_layers(self.forward_funcs, forward_input, self.recompute_interval, self.checkpoint)
        anchors = [parameter for _, parameter in self.named_parameters(recurse=False)]
        if anchors and torch.is_grad_enabled():
            hidden, *rest = output if isinstance(output, tuple) else (output,)
            hidden = _Unused.apply(hidden, *anchors)
            output = (hidden, *rest) if rest else hidden
        return output

    def output_layers(self) -> list[Any]:
        layers = [
            layer.func if isinstance(layer, functools.partial) else layer for layer in self.forward_funcs
        ]
        return [layer for layer in layers if hasattr(layer, "parallel_output")]

    def logical_named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(layer index.path, parameter) of this stage, the names under which every layout knows them."""
        return each_once(self.placed_named_parameters())

    def placed_named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """(layer index.path, parameter) of this stage; a parameter of several layers once for each."""
        tied_prefix = f"tied_modules.{EMBEDDING_KEY}."
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if name.startswith("anchor"):  # see get_params_for_weight_decay_optimization
                continue
            yield (f"0.{name[len(tied_prefix) :]}" if name.startswith(tied_prefix) else name), parameter

    def to_sequential(self) -> SequentialWrapper:
        """The same modules as a plain sequential model; needs all layers to be on this rank."""
        assert self.num_stages == 1, "only a pipeline of one stage holds the whole model"
        layers = [
            TiedLayer(layer.func, layer.args[0]) if isinstance(layer, functools.partial) else layer
            for layer in self.forward_funcs
        ]
        return SequentialWrapper(
            layers,
            self.recompute_interval,
            self.checkpoint,
            parent_class_name=type(self).__name__,
            parallel_output=self.parallel_output,
        )


def _deepspeed_spec(spec: ModuleSpec | Callable) -> LayerSpec | Callable:
    """DeepSpeed's form of a layer."""
    if isinstance(spec, TiedSpec):
        return TiedLayerSpec(
            spec.key,
            spec.module_class,
            *spec.args,
            forward_fn=spec.function,
            tied_weight_attr="word_embeddings_weight",
            **spec.kwargs,
        )
    if isinstance(spec, ModuleSpec):
        return LayerSpec(spec.module_class, *spec.args, **spec.kwargs)
    return spec

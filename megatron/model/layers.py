"""The model as a flat list of layers, from which the pipeline and the plain sequential model are both made.

Index 0 embedding; 1 to [s, b, h]; 2 .. n+1 blocks; n+2 back to [b, s, h]; n+3 norm; n+4 output. One tensor travels
between layers; up to the last block, where documents are isolated, their positions beside it.
"""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron.common.errors import ConfigError
from megatron.model.documents import LayerInput
from megatron.model.init_functions import get_init_methods
from megatron.model.norms import get_norm
from megatron.model.projection import Projection, embedding_width
from megatron.model.transformer import (
    NormPipe,
    ParallelLinearPipe,
    ParallelTransformerLayerPipe,
    TiedOutput,
)
from megatron.model.word_embeddings import EmbeddingPipe
from megatron.mpu.parameters import InitMethod
from megatron.neox_arguments.rules.pipeline import BY_TYPE
from megatron.registry import lookup, names

EMBEDDING_KEY = "embed"


@dataclass(frozen=True)
class ModuleSpec:
    """A layer to be built where it is needed: module_class(*args, **kwargs)."""

    module_class: type
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self) -> torch.nn.Module:
        return self.module_class(*self.args, **self.kwargs)


@dataclass(frozen=True)
class TiedSpec(ModuleSpec):
    """A layer whose module is shared under `key`. With `function`, the layer is function(module, inputs)."""

    key: str = EMBEDDING_KEY
    function: Callable | None = None


def sequence_first(inputs: LayerInput) -> LayerInput:
    """[b, s, h] -> [s, b, h]."""
    if isinstance(inputs, tuple):
        hidden, positions = inputs
        return hidden.transpose(0, 1).contiguous(), positions
    return inputs.transpose(0, 1).contiguous()


def batch_first(inputs: LayerInput) -> torch.Tensor:
    """[s, b, h] -> [b, s, h]. Nothing after the blocks asks for positions."""
    hidden = inputs[0] if isinstance(inputs, tuple) else inputs
    return hidden.transpose(0, 1).contiguous()


def gpt2_attention_mask_func(attention_scores: torch.Tensor, ltor_mask: torch.Tensor) -> torch.Tensor:
    """Scores with the lowest finite value of their dtype where the mask is True."""
    return attention_scores.masked_fill(ltor_mask, torch.finfo(attention_scores.dtype).min)


def block_spec(neox_args, layer_number: int, use_cache: bool = False) -> ModuleSpec:
    """The block that attention_config names for a layer."""
    kind = neox_args.attention_config[layer_number]
    inits = get_init_methods(neox_args)
    if kind in names("block"):
        return ModuleSpec(lookup("block", kind), (neox_args, *inits, layer_number), {"use_cache": use_cache})
    return ModuleSpec(
        ParallelTransformerLayerPipe,
        (neox_args, gpt2_attention_mask_func, *inits, layer_number),
        {"rotary": neox_args.pos_emb == "rotary", "use_cache": use_cache},
    )


def layer_name(spec: ModuleSpec | Callable) -> str:
    """What a layer is called when layers are divided into stages."""
    return spec.module_class.__name__ if isinstance(spec, ModuleSpec) else spec.__name__


def partition_method(neox_args, layer_names: Iterable[str]) -> str:
    """How DeepSpeed divides these layers into stages. A rule that counts transformer layers counts all blocks.

    Raises: ConfigError for a rule that counts none of them.
    """
    method = neox_args.pipe_partition_method
    if "transformer" in method.lower():
        method = "|".join([method, *(lookup("block", name).__name__ for name in names("block"))])
    if method.lower().startswith(BY_TYPE):
        layer_names = list(dict.fromkeys(layer_names))
        pattern = method[len(BY_TYPE) :].lower()
        if not any(re.search(pattern, name, re.IGNORECASE) for name in layer_names):
            raise ConfigError(
                f"pipe_partition_method={neox_args.pipe_partition_method!r} fits none of the layers "
                f"({', '.join(layer_names)})"
            )
    return method


def layer_specs(
    neox_args, parallel_output: bool = True, num_tokentypes: int = 0, use_cache: bool = False
) -> list[ModuleSpec | Callable]:
    """All layers of the model a config describes."""
    init_method, _ = get_init_methods(neox_args)
    embedding_args = (
        neox_args,
        neox_args.hidden_size,
        neox_args.padded_vocab_size,
        neox_args.max_position_embeddings,
        neox_args.hidden_dropout,
        init_method,
        num_tokentypes,
    )
    tied = not neox_args.no_weight_tying
    embedding_class = TiedSpec if tied else ModuleSpec
    if tied:
        output_function = TiedOutput(neox_args, parallel_output)
        output = TiedSpec(EmbeddingPipe, embedding_args, function=output_function)
    else:
        output = ModuleSpec(
            ParallelLinearPipe,
            (neox_args,),
            {"parallel_output": parallel_output, "init_method": init_method, "is_last_layer": True},
        )
    return [
        embedding_class(EmbeddingPipe, embedding_args),
        sequence_first,
        *(block_spec(neox_args, number, use_cache) for number in range(neox_args.num_layers)),
        batch_first,
        _final_norm(neox_args, init_method),
        output,
    ]


def _final_norm(neox_args, init_method: InitMethod) -> ModuleSpec:
    norm, eps = get_norm(neox_args)
    hidden, width = neox_args.hidden_size, embedding_width(neox_args)
    project_out = None
    if width != hidden:
        project_out = functools.partial(Projection, hidden, width, init_method, neox_args.sequence_parallel)
    last = norm if neox_args.norm_placement == "pre" else None
    return ModuleSpec(NormPipe, (last, hidden, eps), {"project_out": project_out})

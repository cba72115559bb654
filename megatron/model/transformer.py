"""Blocks and the layers after them.

Legend: s sequence, b batch, h hidden size, V padded vocabulary, tp tensor-parallel degree. Blocks take and give
[s, b, h]; [s/tp, b, h] with sequence parallelism.
"""

import contextlib
from collections.abc import Callable

import torch

from megatron import mpu
from megatron.model.activations import Gated_Activation
from megatron.model.attention import ParallelSelfAttention
from megatron.model.documents import with_positions
from megatron.model.fused_bias_dropout import bias_dropout_add
from megatron.model.mlp import ParallelMLP
from megatron.model.moe import ParallelDroplessMoE
from megatron.model.mup import readout_scale
from megatron.model.norms import get_norm
from megatron.model.projection import embedding_width
from megatron.model.vocabulary import init_logical_rows, logical_vocab_size, mask_layout_padding
from megatron.mpu.layers import reduce_partial, xavier_normal_
from megatron.mpu.linear import linear_into_region
from megatron.mpu.parameters import InitMethod
from megatron.mpu.random import sharded_region
from megatron.neox_arguments.experts import has_experts

__all__ = [
    "Gated_Activation",
    "NormPipe",
    "ParallelLinear",
    "ParallelLinearPipe",
    "ParallelMLP",
    "ParallelSelfAttention",
    "ParallelTransformerLayer",
    "ParallelTransformerLayerPipe",
    "parallel_lm_logits",
]


class ParallelTransformerLayer(torch.nn.Module):
    """A pre-norm block: x + attention(norm(x)), then the same with the MLP; with gpt_j_residual, both branches side by
    side on x; with norm_placement post, norm(x + attention(x)), then the same with the MLP. Args as in
    ParallelSelfAttention."""

    recompute = True  # the stretch of layers between two activation checkpoints may contain this one

    def __init__(
        self,
        neox_args,
        attention_mask_func: Callable | None,
        init_method: InitMethod,
        output_layer_init_method: InitMethod,
        layer_number: int,
        rpe: torch.nn.Module | None = None,
        rotary: bool = False,
        use_cache: bool = False,
    ):
        super().__init__()
        self.layer_number = layer_number
        self.gpt_j_residual = neox_args.gpt_j_residual
        self.gpt_j_tied = neox_args.gpt_j_tied
        self.norm_afterwards = neox_args.norm_placement == "post"
        self.hidden_dropout = neox_args.hidden_dropout
        self.sequence_parallel = neox_args.sequence_parallel
        norm, eps = get_norm(neox_args)
        self.input_layernorm = norm(neox_args.hidden_size, eps=eps)
        # Part of the checkpoint format even where gpt_j_tied leaves it unused.
        self.post_attention_layernorm = norm(neox_args.hidden_size, eps=eps)
        self.attention = ParallelSelfAttention(
            neox_args,
            attention_mask_func,
            init_method,
            output_layer_init_method,
            layer_number,
            rpe=rpe,
            rotary=rotary,
            use_cache=use_cache,
            parallel_output=self.gpt_j_residual and mpu.get_model_parallel_world_size() > 1,
        )
        self.mlp = self._make_mlp(neox_args, init_method, output_layer_init_method)

    def _make_mlp(
        self, neox_args, init_method: InitMethod, output_init_method: InitMethod
    ) -> torch.nn.Module:
        parallel_output = self.gpt_j_residual and mpu.get_model_parallel_world_size() > 1
        if has_experts(neox_args, self.layer_number):
            return ParallelDroplessMoE(neox_args, init_method, output_init_method, parallel_output)
        return ParallelMLP(
            neox_args, init_method, output_init_method, parallel_output, multiple_of=neox_args.mlp_multiple_of
        )

    @with_positions
    def forward(self, hidden: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[s, b, h] -> [s, b, h]. positions: see megatron.model.documents."""
        if self.norm_afterwards:
            hidden = self.input_layernorm(self._join(hidden, *self.attention(hidden, positions)))
            return self.post_attention_layernorm(self._join(hidden, *self.mlp(hidden)))
        normed = self.input_layernorm(hidden)
        if self.gpt_j_residual:
            attention = self.attention(normed, positions)
            mlp = self.mlp(normed if self.gpt_j_tied else self.post_attention_layernorm(hidden))
            return self._add_both(hidden, attention, mlp)
        hidden = self._join(hidden, *self.attention(normed, positions))
        return self._join(hidden, *self.mlp(self.post_attention_layernorm(hidden)))

    def _add_both(self, hidden: torch.Tensor, attention: tuple, mlp: tuple) -> torch.Tensor:
        """hidden plus both branches, which are summands of the tensor-parallel ranks, and their biases."""
        tensor_parallel = mpu.get_model_parallel_world_size() > 1
        if tensor_parallel and not self._drops():
            # One reduction serves both branches.
            (attention_out, attention_bias), (mlp_out, mlp_bias) = attention, mlp
            hidden = hidden + reduce_partial(attention_out + mlp_out, self.sequence_parallel)
            for bias in (attention_bias, mlp_bias):
                hidden = hidden if bias is None else hidden + bias
            return hidden
        for output, bias in (attention, mlp):
            if tensor_parallel:
                output = reduce_partial(output, self.sequence_parallel)
            hidden = self._join(hidden, output, bias)
        return hidden

    def _drops(self) -> bool:
        return self.training and self.hidden_dropout > 0.0

    def _join(self, residual: torch.Tensor, output: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """residual + dropout(output + bias) of a branch."""
        # Every rank holds the whole activation and must drop the same of it, or its own part of the sequence.
        own_part = self.sequence_parallel and self._drops()
        with sharded_region() if own_part else contextlib.nullcontext():
            return bias_dropout_add(output, bias, residual, self.hidden_dropout, self.training)


class ParallelTransformerLayerPipe(ParallelTransformerLayer):
    """The block under the name by which pipelines are partitioned ("type:transformer")."""


class NormPipe(torch.nn.Module):
    """The final norm, and the way back to the width of the word embeddings where that is another one.

    Args: norm_class: None for no norm; project_out: makes the projection, None for none.
    """

    def __init__(
        self,
        norm_class: Callable[..., torch.nn.Module] | None,
        hidden_size: int,
        eps: float,
        project_out: Callable[[], torch.nn.Module] | None = None,
    ):
        super().__init__()
        self.norm = None if norm_class is None else norm_class(hidden_size, eps=eps)
        self.project_out = None if project_out is None else project_out()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[b, s, h] -> [b, s, h], or [b, s, embedding width]."""
        if self.norm is not None:
            hidden = self.norm(hidden)
        return hidden if self.project_out is None else self.project_out(hidden)


# Rows and columns: int64 [n] each for n places, slices for [b, some of s] of them.
Places = tuple[torch.Tensor, torch.Tensor] | tuple[slice, slice]
LAST: Places = (slice(None), slice(-1, None))  # the last position of every row


class ParallelLinear(torch.nn.Module):
    """Untied output projection, with a bias if use_bias_in_output says so.

    Args: parallel_output: keep the logits cut over the ranks; is_last_layer: matters to muP only.
    Attributes: places: index into [b, s] of the only logits that are wanted; None: all.
    """

    places: Places | None = None

    def __init__(
        self,
        neox_args,
        parallel_output: bool = True,
        init_method: InitMethod = xavier_normal_,
        is_last_layer: bool = False,
    ):
        super().__init__()
        self.parallel_output = parallel_output
        self.input_scale = readout_scale(neox_args)
        self.vocab_rows = logical_vocab_size(neox_args)
        self.final_linear = mpu.ColumnParallelLinear(
            neox_args,
            input_size=embedding_width(neox_args),
            output_size=neox_args.padded_vocab_size,
            bias=neox_args.use_bias_in_output,
            gather_output=False,
            init_method=init_logical_rows(init_method, self.vocab_rows),
            seq_dim=1,
            vocabulary=True,
        )
        self.final_linear.weight.is_table = True

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[b, s, h] -> (logits [b, s, V/tp or V], None)."""
        if self.places is not None:
            hidden = hidden[self.places]
        if self.input_scale != 1.0:
            hidden = hidden * self.input_scale
        logits, _ = self.final_linear(hidden)
        logits = mask_layout_padding(logits, self.vocab_rows)
        return logits if self.parallel_output else mpu.gather_from_model_parallel_region(logits), None


class ParallelLinearPipe(ParallelLinear):
    """ParallelLinear that gives the logits alone."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden)[0]


def parallel_lm_logits(
    input_: torch.Tensor,
    word_embeddings_weight: torch.Tensor,
    parallel_output: bool,
    seq_parallel: bool = False,
    seq_dim: int = 1,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of hidden states [b, s, h] with a weight [V/tp, h]: [b, s, V/tp], or [b, s, V] unless parallel_output."""
    logits = linear_into_region(input_, word_embeddings_weight, bias, seq_parallel, seq_dim)
    return logits if parallel_output else mpu.gather_from_model_parallel_region(logits)


class TiedOutput:
    """Output projection with the word embeddings as its weight; owns no parameters.

    Called as (embedding, hidden [b, s, h]) -> logits [b, s, V/tp or V]. Attributes: places: as of ParallelLinear.
    """

    places: Places | None = None

    def __init__(self, neox_args, parallel_output: bool = True):
        self.parallel_output = parallel_output
        self.sequence_parallel = neox_args.sequence_parallel
        self.input_scale = readout_scale(neox_args)
        self.vocab_rows = logical_vocab_size(neox_args)

    def __call__(self, embedding: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        if self.places is not None:
            hidden = hidden[self.places]
        if self.input_scale != 1.0:
            hidden = hidden * self.input_scale
        logits = parallel_lm_logits(
            hidden, embedding.word_embeddings_weight, True, seq_parallel=self.sequence_parallel
        )
        logits = mask_layout_padding(logits, self.vocab_rows)
        return logits if self.parallel_output else mpu.gather_from_model_parallel_region(logits)

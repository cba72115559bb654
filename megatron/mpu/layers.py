"""Linear layers and embeddings cut over the tensor-parallel group (arXiv 1909.08053, sequence parallel 2205.05198).

Legend: s sequence, b batch, h input size, o output size, tp tensor-parallel degree. Activations are [s, b, h]; with
sequence parallelism [s/tp, b, h] outside of the tensor-parallel regions.
"""

from functools import partial

import torch
import torch.nn.functional as F

from megatron.mpu import mappings, state
from megatron.mpu.linear import linear, linear_into_region
from megatron.mpu.parameters import (
    InitMethod,
    ParameterSpec,
    draw_logical,
    local_slice,
    make_parameter,
    zeros_,
)
from megatron.mpu.utils import VocabUtility, divide


def xavier_normal_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Glorot normal (the default of layers built on their own)."""
    return torch.nn.init.xavier_normal_(tensor, generator=generator)


class VocabParallelEmbedding(torch.nn.Module):
    """Embedding table with its rows cut over the ranks.

    Parameter: weight [num_embeddings/tp, embedding_dim].
    """

    def __init__(
        self, neox_args, num_embeddings: int, embedding_dim: int, init_method: InitMethod = xavier_normal_
    ):
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = make_parameter(
            ParameterSpec((num_embeddings, embedding_dim), init_method, shard_dim=0, vocabulary=True)
        )
        self.weight.is_table = True
        self.vocab_start_index, self.vocab_end_index = VocabUtility.vocab_range_from_global_vocab_size(
            num_embeddings, state.get_model_parallel_rank(), state.get_model_parallel_world_size()
        )

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """input_: int64 [...] -> [..., embedding_dim]."""
        if state.get_model_parallel_world_size() == 1:
            return F.embedding(input_, self.weight)
        elsewhere = (input_ < self.vocab_start_index) | (input_ >= self.vocab_end_index)
        local = (input_ - self.vocab_start_index).masked_fill(elsewhere, 0)
        partial = F.embedding(local, self.weight).masked_fill(elsewhere.unsqueeze(-1), 0.0)
        return mappings.reduce_from_model_parallel_region(partial)


class _ParallelLinear(torch.nn.Module):
    """What both linear layers share: parameters weight [o, h] and bias [o], cut as their specs say.

    mup_rescale: _rescale_parameters has something to do.
    """

    def __init__(
        self,
        neox_args,
        weight: ParameterSpec,
        bias: ParameterSpec | None,
        keep_master: bool,
        mup_rescale: bool,
    ):
        super().__init__()
        self._to_rescale = mup_rescale
        self.sequence_parallel = neox_args.sequence_parallel and state.get_model_parallel_world_size() > 1
        self.weight = make_parameter(weight)
        self.bias = make_parameter(bias) if bias is not None else None
        self.master_weight = None
        if keep_master:
            self.master_weight = draw_logical(weight, None, self.weight.device)
            size, rank = state.get_model_parallel_world_size(), state.get_model_parallel_rank()
            with torch.no_grad():
                self.weight.copy_(local_slice(self.master_weight, weight, rank, size))

    def width_mult(self) -> float:
        """Input features as a multiple of the base model's (muP); 1 where no base shapes are applied."""
        widths = getattr(self.weight, "widths", None)
        return 1.0 if widths is None else widths.fan_in

    @torch.no_grad()
    def mup_reinitialize_weights(self, neox_args) -> None:
        """Draw weight and bias anew, from torch's default generator, as large as muP wants them."""
        size, rank = state.get_model_parallel_world_size(), state.get_model_parallel_rank()
        for parameter in self.parameters(recurse=False):
            logical = draw_logical(parameter.spec, None, parameter.device)
            parameter.copy_(local_slice(logical, parameter.spec, rank, size))

    @torch.no_grad()
    def _rescale_parameters(self) -> None:
        """Once, for an output layer whose values were drawn smaller the wider its input is (mup_rescale_parameters):
        as large as the base model's. A model built with base shapes draws them so from the start."""
        if self._to_rescale:
            self._to_rescale = False
            for parameter in self.parameters(recurse=False):
                parameter.mul_(self.width_mult() ** 0.5)


class ColumnParallelLinear(_ParallelLinear):
    """y = x W^T + b with the output features (rows of W) cut over the ranks.

    Args:
        gather_output: return all output features on every rank instead of the own ones.
        stride: number of equal blocks of output features that are cut on their own.
        blocks: sizes of such blocks where they are unequal.
        keep_master_weight_for_test: keep the whole weight as attribute master_weight.
        skip_bias_add: return the bias instead of adding it.
        seq_dim: dimension of the input that sequence parallelism cuts.
        vocabulary: the output features are tokens, padding included.
    Parameters: weight [output_size/tp, input_size]; bias [output_size/tp].
    """

    def __init__(
        self,
        neox_args,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = True,
        init_method: InitMethod = xavier_normal_,
        stride: int = 1,
        keep_master_weight_for_test: bool = False,
        skip_bias_add: bool = False,
        mup_rescale_parameters: bool = False,
        seq_dim: int = 0,
        blocks: tuple[int, ...] = (),
        vocabulary: bool = False,
    ):
        if stride > 1:
            assert not blocks, "stride and blocks say the same thing"
            blocks = (divide(output_size, stride),) * stride
        rows = partial(ParameterSpec, shard_dim=0, blocks=blocks, vocabulary=vocabulary)
        weight_spec = rows((output_size, input_size), init_method)
        bias_spec = rows((output_size,), zeros_) if bias else None
        super().__init__(
            neox_args, weight_spec, bias_spec, keep_master_weight_for_test, mup_rescale_parameters
        )
        self.gather_output = gather_output
        self.skip_bias_add = skip_bias_add
        self.seq_dim = seq_dim

    def set_parallel_output(self, value: bool) -> None:
        """Whether the output stays cut over the ranks."""
        self.gather_output = not value

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """input_: [..., h] (its sequence cut, with sequence parallelism) -> ([..., o/tp or o], bias if skipped)."""
        bias = None if self.skip_bias_add else self.bias
        output = linear_into_region(input_, self.weight, bias, self.sequence_parallel, self.seq_dim)
        if self.gather_output:
            output = mappings.gather_from_model_parallel_region(output)
        return output, self.bias if self.skip_bias_add else None


class RowParallelLinear(_ParallelLinear):
    """y = x W^T + b with the input features (columns of W) cut over the ranks; the bias is added once, after the sum.

    Args:
        input_is_parallel: the input is already cut over the ranks.
        stride: number of equal blocks of input features that are cut on their own.
        skip_bias_add: return the bias instead of adding it.
        parallel_output: return this rank's summand; the caller sums. Needs skip_bias_add or bias False.
    Parameters: weight [output_size, input_size/tp]; bias [output_size] on every rank.
    """

    def __init__(
        self,
        neox_args,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = False,
        init_method: InitMethod = xavier_normal_,
        stride: int = 1,
        keep_master_weight_for_test: bool = False,
        skip_bias_add: bool = False,
        parallel_output: bool = False,
        mup_rescale_parameters: bool = False,
    ):
        blocks = (divide(input_size, stride),) * stride if stride > 1 else ()
        weight_spec = ParameterSpec((output_size, input_size), init_method, shard_dim=1, blocks=blocks)
        bias_spec = ParameterSpec((output_size,), zeros_) if bias else None
        super().__init__(
            neox_args, weight_spec, bias_spec, keep_master_weight_for_test, mup_rescale_parameters
        )
        self.input_is_parallel = input_is_parallel
        self.skip_bias_add = skip_bias_add
        self.set_parallel_output(parallel_output)
        if self.bias is not None:
            self.bias.sequence_parallel = self.sequence_parallel

    def set_parallel_output(self, value: bool) -> None:
        """Whether each rank returns its summand instead of the sum."""
        assert not value or self.skip_bias_add or self.bias is None, "a summand must not contain the bias"
        self.parallel_output = value

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[s, b, h/tp] or [s, b, h] -> ([s, b, o]; [s/tp, b, o] with sequence parallelism, bias if skipped)."""
        if not self.input_is_parallel:
            input_ = mappings.scatter_to_model_parallel_region(input_)
        bias = None if self.skip_bias_add else self.bias
        if state.get_model_parallel_world_size() == 1:
            output = linear(input_, self.weight, bias)
        else:
            output = linear(input_, self.weight)
            if not self.parallel_output:
                output = reduce_partial(output, self.sequence_parallel)
            if bias is not None:
                output = output + bias
        return output, self.bias if self.skip_bias_add else None


def reduce_partial(partial: torch.Tensor, sequence_parallel: bool) -> torch.Tensor:
    """Sum of the ranks' summands [s, b, h]; with sequence parallelism this rank's part [s/tp, b, h] of it."""
    if sequence_parallel:
        return mappings.reduce_scatter_to_sequence_parallel_region(partial)
    return mappings.reduce_from_model_parallel_region(partial)

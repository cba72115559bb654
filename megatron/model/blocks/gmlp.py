"""gMLP and aMLP blocks (arXiv 2105.08050): a learned matrix mixes positions, in aMLP a tiny attention does so as well.

Legend: s sequence, t positions so far, b batch, h hidden size, tp tensor-parallel degree, f features of a half on this
rank, d width of the tiny attention.
"""

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.common.errors import ConfigError
from megatron.model.activations import get_activation
from megatron.model.attention import KeyValueCache
from megatron.model.blocks.inner_linear import InnerColumnLinear, InnerRowLinear
from megatron.model.decoding_state import DecodingState, decoding_states
from megatron.model.fused_bias_dropout import bias_dropout_add
from megatron.model.norms import get_norm
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter, ones_, zeros_
from megatron.mpu.random import sharded_region
from megatron.neox_arguments.block_sizes import GMLP_FACTOR, gmlp_width
from megatron.registry import register


class TinyAttention(DecodingState):
    """One causal head over the block's 2*width features; every rank computes all of it.

    Parameters: proj_qkv.weight [3d, 2f] (q, k, v), proj_qkv.bias [3d]; proj_ffn.weight [f, d], proj_ffn.bias [f].
    """

    def __init__(self, attention_width: int, width: int, init_method: InitMethod, dropout: float):
        super().__init__()
        self.scale = 1.0 / math.sqrt(attention_width)
        self.dropout = dropout
        self.proj_qkv = InnerRowLinear(2 * width, 3 * attention_width, init_method, blocks=(width, width))
        self.proj_qkv.weight.fused_matrices = (1, 3)
        self.proj_ffn = InnerColumnLinear(attention_width, width, init_method)

    def clear_cache(self) -> None:
        """Forget all keys and values."""
        self.cache = KeyValueCache()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[s, b, 2f] -> [s, b, f]."""
        query, key, value = (
            part.transpose(0, 1).unsqueeze(1) for part in self.proj_qkv(features).chunk(3, -1)
        )
        if self.use_cache:
            key, value = self.cache.append(key, value)
        length, known = query.shape[2], key.shape[2]
        mask = None
        if length != known:
            mask = torch.ones(length, known, dtype=torch.bool, device=query.device).tril(known - length)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
            scale=self.scale,
        )
        return self.proj_ffn(context.squeeze(1).transpose(0, 1))


class SpatialProjection(torch.nn.Module):
    """A weight from every position to every later one and itself, the same for all features.

    Starts as the constant 1, so that the gate is open. Each rank applies it to its own features, so its gradient is
    summed over them.

    Parameters: weight [positions, positions], of which the lower triangle is used; bias [positions].
    """

    def __init__(self, positions: int):
        super().__init__()
        self.weight = make_parameter(ParameterSpec((positions, positions), zeros_))
        self.bias = make_parameter(ParameterSpec((positions,), ones_))

    def forward(self, gates: torch.Tensor, first: int) -> torch.Tensor:
        """gates [t, b, f] -> [t - first, b, f], the mixtures at positions first to t - 1.

        Raises: ConfigError for more positions than there are weights.
        """
        known, positions = len(gates), len(self.bias)
        if known > positions:
            raise ConfigError(
                f"gmlp and amlp blocks mix seq_length={positions} positions, but the input has {known}: shorten it"
            )
        weight, bias = map(mpu.copy_to_model_parallel_region, (self.weight, self.bias))
        weight = weight[first:known, :known].tril(first)
        mixed = torch.addmm(bias[first:known].unsqueeze(-1), weight, gates.flatten(1))
        return mixed.unflatten(-1, gates.shape[1:])


class SpatialGatingUnit(DecodingState):
    """One half of the features times the spatial mixture of the other, normalised, half.

    Args: attention_width: width of the tiny attention that is added to the mixture, None for none.
    Parameters: norm.* [width], proj.*, attn.* (see TinyAttention).
    """

    def __init__(self, neox_args, width: int, attention_width: int | None, init_method: InitMethod):
        super().__init__()
        norm, eps = get_norm(neox_args)
        self.norm = norm(width, eps=eps)
        # Unlike other norms it sees the whole sequence on every rank.
        self.norm.sees_all = True
        self.proj = SpatialProjection(neox_args.seq_length)
        self.attn = None
        if attention_width is not None:
            self.attn = TinyAttention(attention_width, width, init_method, neox_args.attention_dropout)

    def clear_cache(self) -> None:
        """Forget the gates of the past."""
        self._gates: torch.Tensor | None = None  # [positions, b, f], of which _known are there
        self._known = 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[s, b, 2f] -> [s, b, f]."""
        kept, gate = features.chunk(2, dim=-1)
        gates = self._normalised(gate)
        first = 0
        if self.use_cache:
            first, gates = self._known, self._remember(gates)
        mixed = self.proj(gates, first)
        if self.attn is not None:
            mixed = mixed + self.attn(features)
        return kept * mixed

    def _normalised(self, gate: torch.Tensor) -> torch.Tensor:
        """The norm is over the features of all ranks."""
        whole = mpu.gather_from_model_parallel_region(gate)
        return mpu.scatter_to_model_parallel_region(self.norm(whole))

    def _remember(self, gates: torch.Tensor) -> torch.Tensor:
        """All gates [t, b, f], these [s, b, f] at the end."""
        start, self._known = self._known, self._known + len(gates)
        if self._gates is None or self._known > len(self._gates):
            grown = gates.new_empty(max(self._known, len(self.proj.bias)), *gates.shape[1:])
            if self._gates is not None:
                grown[:start] = self._gates[:start]
            self._gates = grown
        self._gates[start : self._known] = gates
        return self._gates[: self._known]


class GMLPBlock(torch.nn.Module):
    """hidden + output_linear(gating(activation(input_linear(norm(hidden))))).

    Args:
        ff_mult: features of each half, in hidden sizes, where neither intermediate_size nor expansion_factor is set.
        mask_fn: masks explicit scores; the tiny attention has none.
    Parameters: norm.*; input_linear.weight [2f, h] (kept half above gate) and bias [2f]; sgu.*;
    output_linear.weight [h, f] and bias [h].
    """

    recompute = True

    def __init__(
        self,
        neox_args,
        init_method: InitMethod,
        output_layer_init_method: InitMethod,
        layer_number: int,
        ff_mult: int = GMLP_FACTOR,
        mask_fn: Callable | None = None,
        use_cache: bool = False,
    ):
        super().__init__()
        self.layer_number = layer_number
        self.hidden_dropout = neox_args.hidden_dropout
        self.sequence_parallel = neox_args.sequence_parallel
        hidden, width = neox_args.hidden_size, gmlp_width(neox_args, ff_mult)
        norm, eps = get_norm(neox_args)
        self.norm = norm(hidden, eps=eps)
        self.activation, _ = get_activation(neox_args)
        self.input_linear = mpu.ColumnParallelLinear(
            neox_args,
            input_size=hidden,
            output_size=2 * width,
            gather_output=False,
            init_method=init_method,
            stride=2,
        )
        attentive = neox_args.attention_config[layer_number] == "amlp"
        self.sgu = SpatialGatingUnit(
            neox_args, width, neox_args.gmlp_attn_dim if attentive else None, init_method
        )
        self.output_linear = mpu.RowParallelLinear(
            neox_args,
            input_size=width,
            output_size=hidden,
            input_is_parallel=True,
            init_method=output_layer_init_method,
            skip_bias_add=True,
        )
        for state in decoding_states(self.sgu):
            state.use_cache = use_cache

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[s, b, h] -> [s, b, h]."""
        features, _ = self.input_linear(self.norm(hidden))
        output, bias = self.output_linear(self.sgu(self.activation(features)))
        own_part = self.sequence_parallel and self.training and self.hidden_dropout > 0.0
        with sharded_region() if own_part else contextlib.nullcontext():
            return bias_dropout_add(output, bias, hidden, self.hidden_dropout, self.training)


LACKS = {
    "gated activation": "its blocks are gated by themselves; choose one such as gelu",
    "norms behind branches": "its one norm stands before the block",
    "maximal update parametrisation": "its weights over positions have no width",
    "soft prompt": "its weights are of seq_length places, and a text of that length behind the prompt needs more",
    "isolated documents": "its weights belong to places in the sample, wherever a document starts",
}
register("block", "gmlp", lacks=LACKS)(GMLPBlock)
register("block", "amlp", lacks=LACKS, example={"gmlp_attn_dim": 8})(GMLPBlock)

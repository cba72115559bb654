"""The two halves of an RWKV v6 block (arXiv 2404.05892).

Legend: s sequence, b batch, h hidden size, A attention width, f feed-forward width, tp tensor-parallel degree. Inputs
are the whole sequence [s, b, h] on every rank. What mixes tokens is computed alike on all ranks; heads and
feed-forward features are cut over them.
"""

import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.model.decoding_state import DecodingState
from megatron.model.projection import Projection
from megatron.model.rwkv.recurrence import wkv6
from megatron.mpu.layers import reduce_partial
from megatron.mpu.linear import linear, linear_into_region
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter, ones_, zeros_

MIX_RANK, DECAY_RANK = 32, 64
GROUP_NORM_EPS = 64e-5
TINY = 1e-4


def fixed(values: torch.Tensor) -> InitMethod:
    """An initial value that is not drawn."""

    def init_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return tensor.copy_(values)

    return init_


def tiny_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Uniform in +-1e-4."""
    return tensor.uniform_(-TINY, TINY, generator=generator)


def vector(spec: ParameterSpec) -> torch.nn.Parameter:
    """A parameter that weight decay leaves alone, as it is no matrix."""
    parameter = make_parameter(spec)
    parameter._no_weight_decay = True
    return parameter


class ColumnProjection(torch.nn.Module):
    """x W^T with the rows of W cut over the ranks; the input is whole on every rank. Parameter: weight [o/tp, h]."""

    shard_dim = 0

    def __init__(self, input_size: int, output_size: int, init_method: InitMethod):
        super().__init__()
        spec = ParameterSpec((output_size, input_size), init_method, shard_dim=self.shard_dim)
        self.weight = make_parameter(spec)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., h] -> [..., o/tp]."""
        return linear_into_region(x, self.weight, None)


class RowProjection(ColumnProjection):
    """x W^T with the columns of W cut over the ranks, as a summand of this rank. Parameter: weight [o, i/tp]."""

    shard_dim = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., i/tp] -> [..., o], to be summed over the ranks."""
        return linear(x, self.weight)


class HeadNorm(torch.nn.Module):
    """Layer norm of each head with weights of its own. Parameters: weight, bias [A/tp]."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = vector(ParameterSpec((size,), ones_, shard_dim=0))
        self.bias = vector(ParameterSpec((size,), zeros_, shard_dim=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., heads/tp, head size] -> [..., A/tp]."""
        normed = F.layer_norm(x, x.shape[-1:], eps=GROUP_NORM_EPS).flatten(-2)
        return normed * self.weight + self.bias


class Shift(DecodingState):
    """The token before each token. With use_cache the last token of a call precedes the first of the next."""

    def clear_cache(self) -> None:
        """The next token is the first one."""
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[s, b, h] -> [s, b, h]; zero before the first token, and before each document (positions [b, s] of 0)."""
        first = torch.zeros_like(x[:1]) if self.last is None else self.last
        if self.use_cache:
            self.last = x[-1:]
        shifted = torch.cat((first, x[:-1]))
        if positions is not None:
            shifted = shifted.masked_fill((positions == 0).t().unsqueeze(-1), 0.0)
        return shifted


class RWKV_TimeMix(DecodingState):
    """Attention by recurrence.

    Args: depth: layer number / (number of layers - 1); shallowness: 1 - layer number / number of layers.
    """

    def __init__(
        self,
        hidden_size: int,
        attention_size: int,
        heads: int,
        depth: float,
        shallowness: float,
        init_method: InitMethod,
        output_init_method: InitMethod,
    ):
        super().__init__()
        self.head_size = mpu.divide(attention_size, heads)
        self._make_mixing(hidden_size, depth, shallowness)
        self._make_decay(hidden_size, attention_size, heads, depth)
        for name in ("receptance", "key", "value", "gate"):
            self.add_module(name, ColumnProjection(hidden_size, attention_size, init_method))
        self.output = RowProjection(attention_size, hidden_size, output_init_method)
        self.ln_x = HeadNorm(attention_size)
        self.shift = Shift()

    def clear_cache(self) -> None:
        """Forget the past."""
        self.state: torch.Tensor | None = None

    def _make_mixing(self, hidden_size: int, depth: float, shallowness: float) -> None:
        channel = torch.arange(hidden_size) / hidden_size
        slow = 1.0 - channel**shallowness
        values = {name: slow for name in "xwk"}
        values["v"] = slow - 0.3 * depth
        values["r"] = values["g"] = 1.0 - channel ** (0.5 * shallowness)
        for name, value in values.items():
            spec = ParameterSpec((1, 1, hidden_size), fixed(value))
            self.register_parameter(f"time_maa_{name}", vector(spec))
        self.time_maa_w1 = make_parameter(ParameterSpec((hidden_size, 5 * MIX_RANK), tiny_))
        self.time_maa_w2 = make_parameter(ParameterSpec((5, MIX_RANK, hidden_size), tiny_))

    def _make_decay(self, hidden_size: int, attention_size: int, heads: int, depth: float) -> None:
        feature = torch.arange(attention_size)
        share = feature / max(1, attention_size - 1)
        decay = -6.0 + 5.0 * share ** (0.7 + 1.3 * depth)
        bonus = depth * (1.0 - share) + 0.1 * ((feature + 1) % 3 - 1)
        self.time_decay = vector(ParameterSpec((1, 1, attention_size), fixed(decay), shard_dim=2))
        self.time_decay_w1 = make_parameter(ParameterSpec((hidden_size, DECAY_RANK), tiny_))
        self.time_decay_w2 = make_parameter(ParameterSpec((DECAY_RANK, attention_size), tiny_, shard_dim=1))
        first = ParameterSpec((heads, attention_size // heads), fixed(bonus.view(heads, -1)), shard_dim=0)
        self.time_faaaa = vector(first)

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[s, b, h] -> this rank's summand [s, b, h]. positions: int [b, s], 0 where a document begins; or None."""
        w, k, v, r, g = self._mixed(x, positions)
        lora = mpu.copy_to_model_parallel_region(torch.tanh(w @ self.time_decay_w1))
        precise = torch.promote_types(x.dtype, torch.float32)
        decay = -torch.exp((self.time_decay + lora @ self.time_decay_w2).to(precise))
        parts = (self.receptance(r), self.key(k), self.value(v), decay)
        r, k, v, decay = (part.unflatten(-1, (-1, self.head_size)).transpose(0, 1) for part in parts)
        y, state = wkv6(r, k, v, decay, self.time_faaaa, self.state, positions)
        if self.use_cache:
            self.state = state
        gated = self.ln_x(y.transpose(0, 1).to(x.dtype)) * F.silu(self.gate(g))
        return self.output(gated)

    def _mixed(self, x: torch.Tensor, positions: torch.Tensor | None) -> list[torch.Tensor]:
        """x interpolated with the token before, by amounts that depend on the data, for w, k, v, r, g."""
        difference = self.shift(x, positions) - x
        base = x + difference * self.time_maa_x
        low = torch.tanh(base @ self.time_maa_w1).unflatten(-1, (5, MIX_RANK))
        amounts = torch.einsum("sbcm,cmh->csbh", low, self.time_maa_w2)
        fixed_amounts = (getattr(self, f"time_maa_{name}") for name in "wkvrg")
        return [
            x + difference * (own + amount)
            for own, amount in zip(fixed_amounts, amounts.unbind(0), strict=True)
        ]


class RWKV_ChannelMix(torch.nn.Module):
    """Feed-forward half: sigmoid(W_r x_r) * W_v relu(W_k x_k)^2. receptance is whole on every rank."""

    def __init__(
        self,
        hidden_size: int,
        ffn_size: int,
        shallowness: float,
        init_method: InitMethod,
        output_init_method: InitMethod,
        sequence_parallel: bool,
    ):
        super().__init__()
        self.sequence_parallel = sequence_parallel
        slow = 1.0 - (torch.arange(hidden_size) / hidden_size) ** shallowness
        self.time_maa_k = vector(ParameterSpec((1, 1, hidden_size), fixed(slow)))
        self.time_maa_r = vector(ParameterSpec((1, 1, hidden_size), fixed(slow)))
        self.key = ColumnProjection(hidden_size, ffn_size, init_method)
        self.receptance = Projection(hidden_size, hidden_size, init_method)
        self.value = RowProjection(ffn_size, hidden_size, output_init_method)
        self.shift = Shift()

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[s, b, h] -> [s, b, h]; with sequence parallelism this rank's part [s/tp, b, h] of it."""
        difference = self.shift(x, positions) - x
        hidden = torch.relu(self.key(x + difference * self.time_maa_k)) ** 2
        value = reduce_partial(self.value(hidden), self.sequence_parallel)
        gate = self.receptance(x + difference * self.time_maa_r)
        if self.sequence_parallel:
            gate = mpu.scatter_to_sequence_parallel_region(gate, seq_dim=0)
        return torch.sigmoid(gate) * value


def layer_ratios(layer_number: int, num_layers: int) -> tuple[float, float]:
    """(depth, shallowness) of a layer; a model of one layer is at depth 0."""
    return layer_number / max(1, num_layers - 1), 1.0 - layer_number / num_layers

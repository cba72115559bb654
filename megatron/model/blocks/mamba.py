"""The Mamba block (arXiv 2312.00752): a selective state space model in place of attention and MLP.

Legend: s sequence, b batch, h hidden size, tp tensor-parallel degree, d channels of this rank (all of them are di), n
states of a channel, r rank of the step sizes.
"""

import math

import torch
import torch.nn.functional as F

from megatron import mpu
from megatron.model.blocks.inner_linear import InnerColumnLinear, InnerRowLinear
from megatron.model.blocks.mamba_kernels import MambaKernels, choose_kernels
from megatron.model.blocks.mamba_scan import selective_scan
from megatron.model.decoding_state import DecodingState
from megatron.model.documents import with_positions
from megatron.model.norms import get_norm
from megatron.mpu.parameters import InitMethod, ParameterSpec, make_parameter, ones_, zeros_
from megatron.neox_arguments.block_sizes import mamba_channels
from megatron.registry import register

STATES, CONV_WIDTH = 16, 4
SMALLEST_STEP, LARGEST_STEP, STEP_FLOOR = 1e-3, 1e-1, 1e-4


def uniform(bound: float) -> InitMethod:
    """U(-bound, bound)."""

    def init_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return tensor.uniform_(-bound, bound, generator=generator)

    return init_


def step_bias_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Biases whose softplus, the step size, is spread evenly over the logarithms of 0.001 to 0.1."""
    tensor.uniform_(math.log(SMALLEST_STEP), math.log(LARGEST_STEP), generator=generator)
    steps = tensor.exp_().clamp_(min=STEP_FLOOR)
    return tensor.copy_(steps + torch.log(-torch.expm1(-steps)))


def decay_rates_(tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """log(1..n) for each channel (S4D-real)."""
    return tensor.copy_(torch.arange(1, tensor.shape[1] + 1, device=tensor.device).log())


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class CausalConv(torch.nn.Module):
    """Each channel mixed with its own past: width 4.

    Parameters: weight [d, 1, 4], the last column for the present; bias [d].
    """

    def __init__(self, channels: int, bias: bool):
        super().__init__()
        init = uniform(CONV_WIDTH**-0.5)
        self.weight = make_parameter(ParameterSpec((channels, 1, CONV_WIDTH), init, shard_dim=0))
        self.bias = make_parameter(ParameterSpec((channels,), zeros_, shard_dim=0)) if bias else None

    def forward(
        self, x: torch.Tensor, past: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x: [s, b, d]; past: [3, b, d], the inputs before; positions: [s, b] inside documents. Returns [s, b, d], in
        fp32 for 16-bit inputs."""
        weight = _at_least_fp32(self.weight).squeeze(1)
        padded = torch.cat((past, x))
        mixed = x * weight[:, -1]
        for back in range(1, CONV_WIDTH):
            start = CONV_WIDTH - 1 - back
            term = padded[start : start + len(x)] * weight[:, start]
            if positions is not None:
                term = term.masked_fill((positions < back).unsqueeze(-1), 0.0)
            mixed = mixed + term
        return mixed if self.bias is None else mixed + self.bias


class ParallelMambaBlock(DecodingState):
    """The mixer: (x, z) = in_proj(u); x through convolution and selective scan; times silu(z); out_proj.

    Channels are cut over the tensor-parallel ranks; x_proj sums over them. A_log and D are stored like all
    parameters of the run (in 16 bit with fp32 masters in the optimizer, ZeRO or not) and computed with in fp32, unless
    mamba_selective_fp32_params is off.

    Parameters: in_proj.weight [2d, h] (x above z), conv1d.weight [d, 1, 4], conv1d.bias [d], x_proj.weight [r+2n, d],
    dt_proj.weight [d, r], dt_proj.bias [d], A_log [d, n], D [d], out_proj.weight [h, d]; with
    mamba_use_bias_in_linears in_proj.bias [2d], x_proj.bias [r+2n], out_proj.bias [h].
    """

    def __init__(
        self,
        neox_args,
        init_method: InitMethod,
        output_layer_init_method: InitMethod,
        use_cache: bool = False,
    ):
        super().__init__(use_cache)
        hidden, channels = neox_args.hidden_size, mamba_channels(neox_args)
        bias = neox_args.mamba_use_bias_in_linears
        self.step_rank = math.ceil(hidden / 16)
        self.fp32_params = neox_args.mamba_selective_fp32_params
        self.in_proj = mpu.ColumnParallelLinear(
            neox_args,
            input_size=hidden,
            output_size=2 * channels,
            bias=bias,
            gather_output=False,
            init_method=init_method,
            stride=2,
        )
        self.conv1d = CausalConv(channels, neox_args.mamba_use_bias_in_conv)
        self.x_proj = InnerRowLinear(channels, self.step_rank + 2 * STATES, init_method, bias)
        self.dt_proj = InnerColumnLinear(self.step_rank, channels, uniform(self.step_rank**-0.5), step_bias_)
        self.A_log = make_parameter(ParameterSpec((channels, STATES), decay_rates_, shard_dim=0))
        self.D = make_parameter(ParameterSpec((channels,), ones_, shard_dim=0))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True
        self.out_proj = mpu.RowParallelLinear(
            neox_args,
            input_size=channels,
            output_size=hidden,
            bias=bias,
            input_is_parallel=True,
            init_method=output_layer_init_method,
            skip_bias_add=True,
        )
        # A model that is only counted or planned needs no packages.
        self.kernels = MambaKernels() if self.D.is_meta else choose_kernels(neox_args)

    def clear_cache(self) -> None:
        """Forget the past."""
        self._past: torch.Tensor | None = None  # the convolution's last inputs, [3, b, d]
        self._state: torch.Tensor | None = None  # [b, d, n]

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden: [s, b, h] (normalised); positions: int [s, b] inside documents, 0 forgets what came before, None for
        a single document. Returns: ([s, b, h], bias still to be added or None)."""
        projected, _ = self.in_proj(hidden)
        plain = positions is None and not self.use_cache
        if plain and self.kernels.inner is not None:
            return self._inner(projected), None
        x, z = projected.chunk(2, dim=-1)
        x = self._convolved(x, positions, plain)
        steps, B, C = self.x_proj(x).split((self.step_rank, STATES, STATES), dim=-1)
        if plain and self.kernels.scan is not None:
            return self.out_proj(self._kernel_scan(x, steps, B, C, z))
        delta = F.softplus(_at_least_fp32(self.dt_proj(steps)))
        restart = None if positions is None else positions == 0
        y, state = selective_scan(x, delta, self._decay(), B, C, self._state, restart)
        if self.use_cache:
            self._state = state
        gated = (y + self._skip() * x) * F.silu(_at_least_fp32(z))
        return self.out_proj(gated.to(hidden.dtype))

    def _decay(self) -> torch.Tensor:
        """A, [d, n]."""
        return -torch.exp(_at_least_fp32(self.A_log) if self.fp32_params else self.A_log)

    def _skip(self) -> torch.Tensor:
        """D, [d]."""
        return _at_least_fp32(self.D) if self.fp32_params else self.D

    def _convolved(self, x: torch.Tensor, positions: torch.Tensor | None, plain: bool) -> torch.Tensor:
        """silu(convolution of x) [s, b, d]; keeps the end of x in the cache."""
        if plain and self.kernels.conv is not None:
            bias = self.conv1d.bias
            mixed = self.kernels.conv(
                x.permute(1, 2, 0).contiguous(), self.conv1d.weight.squeeze(1), bias, activation="silu"
            )
            return mixed.permute(2, 0, 1)
        past = self._past
        if past is None:
            past = x.new_zeros(CONV_WIDTH - 1, *x.shape[1:])
        if self.use_cache:
            self._past = torch.cat((past, x))[-len(past) :]
        return F.silu(self.conv1d(x, past, positions)).to(x.dtype)

    def _kernel_scan(self, x: torch.Tensor, steps, B, C, z) -> torch.Tensor:
        """Scan, skip and gate by mamba_ssm, whose tensors are [b, features, s]."""
        raw_delta = F.linear(steps, self.dt_proj.weight)
        x, raw_delta, B, C, z = (t.permute(1, 2, 0).contiguous() for t in (x, raw_delta, B, C, z))
        gated = self.kernels.scan(
            x,
            raw_delta,
            _at_least_fp32(self._decay()),
            B,
            C,
            _at_least_fp32(self._skip()),
            z=z,
            delta_bias=_at_least_fp32(self.dt_proj.bias),
            delta_softplus=True,
        )
        return gated.permute(2, 0, 1)

    def _inner(self, projected: torch.Tensor) -> torch.Tensor:
        """All of it by mamba_ssm, from in_proj's output to out_proj's."""
        output = self.kernels.inner(
            projected.permute(1, 2, 0).contiguous(),
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            None,
            _at_least_fp32(self._decay()),
            D=_at_least_fp32(self._skip()),
            delta_bias=_at_least_fp32(self.dt_proj.bias),
            delta_softplus=True,
        )
        return output.transpose(0, 1)


class ParallelMambaResidualLayer(torch.nn.Module):
    """hidden + mixer(norm(hidden))."""

    recompute = True

    def __init__(
        self,
        neox_args,
        init_method: InitMethod,
        output_layer_init_method: InitMethod,
        layer_number: int,
        use_cache: bool = False,
    ):
        super().__init__()
        self.layer_number = layer_number
        norm, eps = get_norm(neox_args)
        self.norm = norm(neox_args.hidden_size, eps=eps)
        self.mixer = ParallelMambaBlock(neox_args, init_method, output_layer_init_method, use_cache)

    @with_positions
    def forward(self, hidden: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[s, b, h] -> [s, b, h]. positions: see megatron.model.documents."""
        output, bias = self.mixer(self.norm(hidden), None if positions is None else positions.t())
        return hidden + (output if bias is None else output + bias)


@register(
    "block",
    "mamba",
    lacks={
        "hidden dropout": "the block has no dropout, and a model with dropout in its embeddings alone is hardly meant",
        "norms behind branches": "its one norm stands before the block",
        "maximal update parametrisation": "its weights have initial values and learning rates of their own",
    },
)
class ParallelMambaResidualLayerPipe(ParallelMambaResidualLayer):
    """The block under the name by which GPT-NeoX's pipelines know it."""

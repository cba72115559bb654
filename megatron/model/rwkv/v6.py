"""The RWKV v6 block (arXiv 2404.05892)."""

import contextlib

import torch
import torch.nn.functional as F

from megatron import fused_kernels, mpu
from megatron.common.device import has_accelerator
from megatron.model.decoding_state import decoding_states
from megatron.model.documents import with_positions
from megatron.model.norms import LayerNorm
from megatron.model.rwkv.mixing import RWKV_ChannelMix, RWKV_TimeMix, layer_ratios
from megatron.model.sharing import number_of_values
from megatron.mpu.layers import reduce_partial
from megatron.mpu.parameters import InitMethod
from megatron.mpu.random import sharded_region

__all__ = ["RWKVResidualLayer", "RWKVResidualLayerPipe", "RWKV_ChannelMix", "RWKV_TimeMix"]


class RWKVResidualLayer(torch.nn.Module):
    """drop(x + attention(ln1 x)), then drop(x + feed_forward(ln2 x)). Args as in every block."""

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
        if has_accelerator():  # before training starts, as it may have to be compiled
            fused_kernels.load(neox_args.fused_kernels_build_path)
        size, inits = neox_args.hidden_size, (init_method, output_layer_init_method)
        number = number_of_values(neox_args, layer_number)
        depth, shallowness = layer_ratios(number, neox_args.num_layers)
        self.sequence_parallel = neox_args.sequence_parallel and mpu.get_model_parallel_world_size() > 1
        self.normed_twice = layer_number == 0
        self.attention_dropout = neox_args.attention_dropout
        self.hidden_dropout = neox_args.hidden_dropout
        self.ln1 = LayerNorm(size)
        self.ln2 = LayerNorm(size)
        heads = neox_args.num_attention_heads
        self.att = RWKV_TimeMix(size, neox_args.dim_att, heads, depth, shallowness, *inits)
        self.ffn = RWKV_ChannelMix(size, neox_args.ffn_dim, shallowness, *inits, self.sequence_parallel)
        for state in decoding_states(self):
            state.use_cache = use_cache

    @with_positions
    def forward(self, hidden: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[s, b, h] -> [s, b, h]; both [s/tp, b, h] with sequence parallelism. positions: as in model.documents."""
        if self.normed_twice:
            hidden = self.ln1(hidden)
        attention = self.att(self._whole(self.ln1(hidden)), positions)
        hidden = self._drop(
            hidden + reduce_partial(attention, self.sequence_parallel), self.attention_dropout
        )
        return self._drop(hidden + self.ffn(self._whole(self.ln2(hidden)), positions), self.hidden_dropout)

    def _whole(self, hidden: torch.Tensor) -> torch.Tensor:
        """The whole sequence, with which every rank does the same until its own heads or features."""
        return mpu.gather_from_model_parallel_region(hidden, 0) if self.sequence_parallel else hidden

    def _drop(self, hidden: torch.Tensor, probability: float) -> torch.Tensor:
        if not self.training or probability == 0.0:
            return hidden
        with sharded_region() if self.sequence_parallel else contextlib.nullcontext():
            return F.dropout(hidden, probability)


class RWKVResidualLayerPipe(RWKVResidualLayer):
    """The block under the name by which pipelines are partitioned."""

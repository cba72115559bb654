"""Multi-head self-attention (arXiv 1706.03762), with grouped keys and values (arXiv 2305.13245).

Legend: s sequence, b batch, h hidden size, d head size, n query heads and kv key/value heads of this tensor-parallel
rank, t positions attended to.
"""

import contextlib
import math
from collections.abc import Callable

import torch

from megatron import mpu
from megatron.model.attention.backend import make_backend
from megatron.model.attention.kv_cache import KeyValueCache
from megatron.model.positional_embeddings import split_and_rotate
from megatron.mpu.parameters import InitMethod
from megatron.mpu.random import sharded_region
from megatron.registry import lookup


class ParallelSelfAttention(torch.nn.Module):
    """Fused projection to q, k, v; position; attention; output projection.

    Args:
        attention_mask_func: masks explicit scores, for back-ends that have them; the ones built in never do.
        layer_number: 0-based.
        rpe: relative position bias module; none of the built-in position schemes has one.
        rotary: rotate queries and keys by their position.
        use_cache: remember keys and values between calls.
        parallel_output: leave the output projection unsummed (see RowParallelLinear).

    query_key_value rows: per head q|k|v; with grouped keys and values, per rank all q heads, then k, then v.
    """

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
        parallel_output: bool = False,
    ):
        super().__init__()
        assert rpe is None, "no attention back-end takes a relative position bias"
        heads = neox_args.num_attention_heads
        kv_heads = neox_args.num_kv_heads or heads
        tensor_size = mpu.get_model_parallel_world_size()
        self.layer_number = layer_number
        self.head_size = mpu.divide(neox_args.hidden_size, heads)
        self.heads = mpu.divide(heads, tensor_size)
        self.kv_heads = mpu.divide(kv_heads, tensor_size)
        self.grouped = kv_heads != heads
        # apply_query_key_layer_scaling divides the scores by the layer number and multiplies them by it again inside
        # an fp32 softmax. The built-in back-ends keep scores in fp32 throughout, where the two cancel.
        self.scale = 1.0 / math.sqrt(self.head_size)
        self.dropout = neox_args.attention_dropout
        self.use_cache = use_cache
        self.cache = KeyValueCache()

        sizes = (heads * self.head_size, kv_heads * self.head_size, kv_heads * self.head_size)
        self.query_key_value = mpu.ColumnParallelLinear(
            neox_args,
            input_size=neox_args.hidden_size,
            output_size=sum(sizes),
            bias=neox_args.use_bias_in_attn_linear,
            gather_output=False,
            init_method=init_method,
            blocks=sizes if self.grouped else (),
        )
        self.rotary_emb = None
        if rotary:
            self.rotary_emb = lookup("positional embedding", "rotary").in_attention(neox_args, self.head_size)
        self.attend = make_backend(neox_args, neox_args.attention_config[layer_number])
        self.dense = mpu.RowParallelLinear(
            neox_args,
            input_size=neox_args.hidden_size,
            output_size=neox_args.hidden_size,
            bias=neox_args.use_bias_in_attn_linear,
            input_is_parallel=True,
            init_method=output_layer_init_method,
            skip_bias_add=tensor_size > 1,
            parallel_output=parallel_output,
        )

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden [s, b, h] (normalised) -> ([s, b, h], bias still to be added or None)."""
        qkv, _ = self.query_key_value(hidden)
        length, batch = qkv.shape[:2]
        past = self.cache.length if self.use_cache else 0
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in self._project(qkv, past))
        if self.use_cache:
            key, value = self.cache.append(key, value)
        dropout = self.dropout if self.training else 0.0
        with sharded_region() if dropout else contextlib.nullcontext():
            context = self.attend(query, key, value, scale=self.scale, dropout=dropout)
        context = context.permute(2, 0, 1, 3).reshape(length, batch, self.heads * self.head_size)
        return self.dense(context)

    def _project(self, qkv: torch.Tensor, past: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v [s, b, heads, d] of the fused projection; q and k rotated to positions past, past+1, ..."""
        split = self._split_grouped if self.grouped else self._split_heads
        if self.rotary_emb is None:
            return split(qkv)
        end = past + qkv.shape[0]
        cos, sin = self.rotary_emb.half_tables(end, qkv.dtype, qkv.device)
        return split_and_rotate(qkv, split, cos[past:], sin[past:])

    def _split_heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return qkv.unflatten(-1, (self.heads, 3, self.head_size)).unbind(-2)

    def _split_grouped(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counts = (self.heads, self.kv_heads, self.kv_heads)
        return qkv.unflatten(-1, (sum(counts), self.head_size)).split(counts, -2)

    def clear_cache(self) -> None:
        """Forget all keys and values."""
        self.cache = KeyValueCache()

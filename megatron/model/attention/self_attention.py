"""Multi-head self-attention (arXiv 1706.03762), with grouped keys and values (arXiv 2305.13245).

Legend: s sequence, b batch, h hidden size, d head size, n query heads and kv key/value heads of this tensor-parallel
rank, t positions attended to.
"""

import contextlib
from collections.abc import Callable

import torch

from megatron import mpu
from megatron.model.attention.backend import Demands, make_backend, pattern_of_layer
from megatron.model.attention.heads import HeadLayout
from megatron.model.attention.kv_cache import KeyValueCache
from megatron.model.decoding_state import DecodingState
from megatron.model.mup import attention_scale
from megatron.model.norms import HeadLayerNorm, get_norm
from megatron.model.positional_embeddings import rotate, split_and_rotate
from megatron.mpu.parameters import InitMethod
from megatron.mpu.random import sharded_region
from megatron.registry import lookup


class ParallelSelfAttention(DecodingState):
    """Fused projection to q, k, v; position; attention; output projection.

    Args:
        attention_mask_func: masks explicit scores, for back-ends that have them; the ones built in never do.
        layer_number: 0-based.
        rpe: relative position bias module that the layers of the model share, if it has one.
        rotary: rotate queries and keys by their position.
        use_cache: remember keys and values between calls.
        parallel_output: leave the output projection unsummed (see RowParallelLinear).

    Rows of query_key_value: see HeadLayout.
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
        super().__init__(use_cache)
        self.layer_number = layer_number
        self.layout = HeadLayout.from_config(neox_args)
        self.scale = attention_scale(neox_args, self.layout.size)
        self.dropout = neox_args.attention_dropout

        sections = self.layout.sections
        self.query_key_value = mpu.ColumnParallelLinear(
            neox_args,
            input_size=neox_args.hidden_size,
            output_size=sum(sections),
            bias=_either(neox_args.use_bias_in_attn_qkv, neox_args.use_bias_in_attn_linear),
            gather_output=False,
            init_method=init_method,
            blocks=sections if self.layout.grouped else (),
        )
        if not self.layout.grouped:
            self.query_key_value.weight.fused_matrices = (self.layout.queries, 3)
        self._make_head_norms(neox_args)
        self._make_attention(neox_args, rotary, rpe)
        self.dense = mpu.RowParallelLinear(
            neox_args,
            input_size=sections[0],
            output_size=neox_args.hidden_size,
            bias=_either(neox_args.use_bias_in_attn_dense, neox_args.use_bias_in_attn_linear),
            input_is_parallel=True,
            init_method=output_layer_init_method,
            skip_bias_add=mpu.get_model_parallel_world_size() > 1,
            parallel_output=parallel_output,
        )

    def _make_head_norms(self, neox_args) -> None:
        self.q_layernorm = self.k_layernorm = None
        if neox_args.use_qk_layernorm:
            self.q_layernorm = _head_norm(neox_args, self.layout, self.layout.queries, self.layout.heads)
            self.k_layernorm = _head_norm(neox_args, self.layout, self.layout.keys, self.layout.kv_heads)

    def _make_attention(self, neox_args, rotary: bool, rpe: torch.nn.Module | None) -> None:
        """What turns queries and keys, and what attends: positions come in here or there."""
        self.rotary_emb = None
        if rotary:
            self.rotary_emb = lookup("positional embedding", "rotary").in_attention(
                neox_args, self.layout.size
            )
        in_scores = rpe
        if rpe is None:
            in_scores = lookup("positional embedding", neox_args.pos_emb).in_scores(neox_args)
        self.rpe = in_scores if isinstance(in_scores, torch.nn.Module) else None
        pattern = pattern_of_layer(neox_args, self.layer_number, in_scores)
        isolated = neox_args.isolate_documents
        demands = Demands(self.layout.size, neox_args.params_dtype, self.dropout, isolated=isolated)
        self.attend = make_backend(pattern, demands)

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden [s, b, h] (normalised) -> ([s, b, h], bias still to be added or None).

        positions: int64 [b, s], where documents are isolated, counted from 0 in each; there is no cache then.
        """
        qkv = self.layout.whole_heads(self.query_key_value(hidden)[0])
        length, batch = qkv.shape[:2]
        past = self.cache.length if self.use_cache else 0
        heads = self._project(qkv, past, positions)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in heads)
        if self.use_cache:
            key, value = self.cache.append(key, value)
        dropout = self.dropout if self.training else 0.0
        with sharded_region() if dropout else contextlib.nullcontext():
            context = self.attend(query, key, value, scale=self.scale, dropout=dropout, positions=positions)
        return self.dense(context.permute(2, 0, 1, 3).reshape(length, batch, -1))

    def _project(
        self, qkv: torch.Tensor, past: int, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v [s, b, heads, d] of the fused projection; q and k normalised, and rotated to `positions`, or to past,
        past+1, ..."""
        tables = self._rotations(qkv, past, positions) if self.rotary_emb is not None else None
        if self.q_layernorm is None and tables is not None:
            if torch.is_grad_enabled():
                return split_and_rotate(qkv, self.layout.split, *tables)
            cos, sin = (table.unsqueeze(2) for table in tables)
            return self.layout.split_turned(qkv, lambda heads: rotate(heads, cos, sin))
        query, key, value = self.layout.split(qkv)
        if self.q_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        if tables is not None:
            query, key = rotate(query, *tables), rotate(key, *tables)
        return query, key, value

    def _rotations(
        self, qkv: torch.Tensor, past: int, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [s, 1, 1, rotated/2]; [s, b, 1, rotated/2] where rows have positions of their own."""
        cos, sin = self.rotary_emb.half_tables(past + qkv.shape[0], qkv.dtype, qkv.device)
        if positions is None:
            return cos[past:], sin[past:]
        rows = positions.t()
        return cos[rows].squeeze(2), sin[rows].squeeze(2)

    def clear_cache(self) -> None:
        """Forget all keys and values."""
        self.cache = KeyValueCache()


def _either(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _head_norm(neox_args, layout: HeadLayout, heads: int, own: int) -> torch.nn.Module:
    """A norm of the config over the features of one head; heads, own: how many the model and this rank have."""
    make, eps = get_norm(neox_args)
    if neox_args.qk_layernorm_per_head:
        first = layout.rank * heads // layout.ranks
        norm: torch.nn.Module = HeadLayerNorm(heads, layout.size, eps, slice(first, first + own))
    else:
        norm = make(layout.size, eps=eps)
    for parameter in norm.parameters():
        # Every rank holds it whole and applies it to its own heads.
        parameter.sees_own_heads = True
    return norm

"""What stands inside a block: attention, MLP, residuals, kernels, and the non-transformer block kinds."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.fields.model_shape import ModelShape
from megatron.neox_arguments.markers import derived, later
from megatron.neox_arguments.template import NeoXArgsTemplate


@dataclass
class ModelBlocks(NeoXArgsTemplate):
    """Attention and MLP."""

    num_attention_heads: int | None = None
    """Number of query heads; must divide hidden_size unless head_dim is set. Required."""

    num_kv_heads: int | None = None
    """Number of key and value heads, which divides num_attention_heads. Unset or equal to it: multi-head attention;
    fewer: grouped queries; 1: multi-query attention. With more tensor-parallel ranks than that, ranks share heads."""

    head_dim: int | None = None
    """Features of an attention head; hidden_size / num_attention_heads when unset."""

    attention_softmax_scale: float | None = None
    """What attention scores are multiplied by before the softmax; one over the square root of a head's size when unset.
    GPT-Neo uses 1.0."""

    sliding_window_width: int | None = None
    """Number of most recent keys, its own included, that a query sees in every attention layer (GPT-NeoX: one more
    without flash attention). For some layers only, see `local` in sparsity_config."""

    use_qk_layernorm: bool = False
    """Normalise queries and keys, each head on its own, before positions are applied. Queries and keys have a norm each
    (GPT-NeoX: one for both, over all heads of a rank together, which depends on model_parallel_size)."""

    qk_layernorm_per_head: bool = False
    """With use_qk_layernorm: each head has a weight of its own and no bias, as in StableLM-2-12B. `norm: layernorm`."""

    isolate_documents: bool = False
    """Keep the documents of a packed sample apart: a token sees, and counts its position from, the first token after
    the last end-of-document token. In generation the whole text is one document."""

    attention_config: list | None = None
    """Attention kind of each layer: `[[[kind, ...], repeats], ...]`, where repeats may be "all", or one kind per layer.
    `global` and `flash` both mean causal attention over the whole sequence; `local`, `sparse_fixed`, `sparse_variable`,
    `bigbird` and `bslongformer` see part of it, see sparsity_config."""

    sparsity_config: dict | None = None
    """Options of sparse attention layers, in blocks of `block` (16) positions. All but local: different_layout_per_head
    (false). local: `window`, the exact number of keys that a query sees, its own included; or num_local_blocks, else
    num_sliding_window_blocks (4), blocks up to the own one. sparse_fixed: num_local_blocks (4), num_global_blocks (1),
    num_different_global_patterns (1). sparse_variable: local_window_blocks ([4]), global_block_indices ([0]),
    global_block_end_indices, num_random_blocks (0). bigbird: num_sliding_window_blocks (3), num_global_blocks (1),
    num_random_blocks (1). bslongformer: num_sliding_window_blocks (3), global_block_indices ([0]),
    global_block_end_indices."""

    activation: Literal[
        "gelu",
        "geglu",
        "relu",
        "softsign",
        "swish",
        "mish",
        "silu",
        "reglu",
        "swiglu",
        "bilinear",
        "glu",
    ] = "gelu"
    """Non-linearity of the MLP. geglu, reglu, swiglu, bilinear and glu are gated: the first matrix gives halves x and
    gate, of which the second takes act(gate) * x, with act gelu, relu, silu, nothing or the logistic function."""

    use_flashattn_swiglu: bool = False
    """Use the swiglu kernel of the package flash-attn, which must be installed. Only for activation swiglu."""

    scaled_upper_triang_masked_softmax_fusion: bool = False
    """A hint without effect on results: the attention back-end already fuses scale, causal mask and softmax."""

    scaled_masked_softmax_fusion: bool = False
    """A hint without effect on results: the attention back-end already fuses scale, mask and softmax."""

    bias_gelu_fusion: bool = False
    """Use the tanh approximation of GELU, with the bias of the first MLP matrix fused in. Only for activation gelu;
    unlike the other fusion switches it changes the function computed."""

    bias_dropout_fusion: bool = False
    """A hint without effect on results: bias, dropout and residual addition have one form, fused where it pays."""

    rope_fusion: bool = False
    """A hint without effect on results: rotary positions are applied by one routine in every case."""

    apply_query_key_layer_scaling: bool = False
    """Divide scores by the layer number and multiply them back before the softmax. For the scores it is a hint without
    effect: the half-precision overflow that it avoids is ruled out by the attention back-ends' fp32 scores. But what
    pos_emb alibi or rpe adds in between is multiplied by the layer number."""

    attention_softmax_in_fp32: bool = False
    """A hint without effect on results: the attention back-end always computes the softmax in fp32."""

    gmlp_attn_dim: int = 64
    """Width of the single attention head of amlp blocks."""

    gpt_j_residual: bool = False
    """Compute attention and MLP side by side from the same input and add both to the residual."""

    gpt_j_tied: bool = False
    """With gpt_j_residual, feed both branches from one shared norm instead of two."""

    use_bias_in_norms: bool = True
    """Give LayerNorm (norm: layernorm) a bias; the other norms have none, and te_layernorm cannot be without."""

    use_bias_in_attn_linear: bool = True
    """Give the query-key-value and the attention output projection biases."""

    use_bias_in_attn_qkv: bool | None = None
    """Give the query-key-value projection a bias; use_bias_in_attn_linear when unset."""

    use_bias_in_attn_dense: bool | None = None
    """Give the attention output projection a bias; use_bias_in_attn_linear when unset."""

    use_bias_in_mlp: bool = True
    """Give the MLP matrices biases."""


@dataclass
class ModelVariants(NeoXArgsTemplate):
    """Mamba, RWKV, TransformerEngine, and the servers of online training."""

    mamba_selective_scan_fusion: bool = False
    """Use the CUDA scan of the mamba_ssm package. On a CPU this and the next two keys leave the work to plain torch,
    with the same results; on a GPU the packages must be installed."""

    mamba_causal_conv_fusion: bool = False
    """Use the CUDA kernel of the causal_conv1d package."""

    mamba_inner_func_fusion: bool = False
    """Use mamba_ssm's single fused inner operation; excludes biases in the linears. With tensor parallelism, which has
    a sum in the middle of it, the two kernels above are used instead."""

    mamba_selective_fp32_params: bool = True
    """Compute with A_log and D in fp32; otherwise in the precision of the run. A 16-bit run stores them in 16 bit like
    all parameters, rounded from the optimizer's fp32 masters at every step, with and without ZeRO."""

    mamba_use_bias_in_conv: bool = True
    """Give the depthwise convolution a bias."""

    mamba_use_bias_in_linears: bool = False
    """Give Mamba's input, selection and output projections biases."""

    serve_model_weights: bool = False
    """Serve the weights of each rank to other programs while training goes on (docs/serving.md)."""

    weight_server_port: int | list[int] = 6000
    """Port of rank 0's weight server, from which those of the others count up, or one port per rank."""

    weight_server_address: str = "127.0.0.1"
    """Address the weight servers listen at. One that other machines reach needs a secret in the environment variable
    NEOX_WEIGHT_TOKEN."""

    online_dataserver_ips: str | list[str] = "localhost"
    """Host of the sample server, or one host per data-parallel rank (dataset_impl online)."""

    online_dataserver_ports: int | list[int] = 10000
    """Port of the sample server, or one port per data-parallel rank (dataset_impl online)."""

    online_dataserver_timeout: float = 300.0
    """Seconds in which a sample server has to answer; connecting is tried again for as long."""

    te_columnparallel: bool = later(False)
    """Use TransformerEngine's column-parallel linear."""

    te_rowparallel: bool = later(False)
    """Use TransformerEngine's row-parallel linear."""

    te_layernorm_mlp: bool = later(False)
    """Use TransformerEngine's fused norm and MLP."""

    te_mha: bool = later(False)
    """Use TransformerEngine's attention."""

    te_fp8_format: Literal["e4m3", "hybrid"] = later("hybrid")
    """fp8 number format of TransformerEngine modules."""

    te_fp8_wgrad: bool = later(True)
    """Compute weight gradients in fp8."""

    te_fp8_amax_history_len: int = later(1)
    """Steps of maxima from which fp8 scales are taken."""

    te_fp8_amax_compute_algo: Literal["max", "most_recent"] = later("most_recent")
    """How a scale is taken from the history of maxima."""

    te_fp8_margin: int = later(0)
    """Safety margin, in powers of two, of fp8 scales."""

    te_fp8_mha: bool = later(False)
    """Run TransformerEngine's attention in fp8."""

    dim_att: int | None = None
    """Width of the time mixing of rwkv layers; hidden_size when unset."""

    head_size: int | None = derived(None, "dim_att and num_attention_heads")
    """Width of an RWKV head."""

    ffn_dim: int | None = derived(None, "intermediate_size, expansion_factor and hidden_size")
    """Width of RWKV's channel mixing."""


@dataclass
class NeoXArgsModel(ModelVariants, ModelBlocks, ModelShape):
    """Everything about the architecture."""

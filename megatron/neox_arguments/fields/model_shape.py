"""Sizes, positions, initial values and precision of the model."""

from dataclasses import dataclass
from typing import Literal

from megatron.neox_arguments.template import NeoXArgsTemplate

InitMethod = Literal[
    "normal",
    "scaled_normal",
    "orthogonal",
    "scaled_orthogonal",
    "xavier_uniform",
    "xavier_normal",
    "wang_init",
    "small_init",
    "single_residual_scaled_normal",
]


@dataclass
class ModelShape(NeoXArgsTemplate):
    """Architecture outside the attention and MLP details."""

    precision: Literal["fp16", "fp32", "bfloat16"] | None = None
    """Number format of the forward and backward pass. Unset: taken from the fp16/bf16 dictionaries, else fp32."""

    num_layers: int | None = None
    """Number of transformer blocks. Required."""

    hidden_size: int | None = None
    """Width of the residual stream. Required."""

    intermediate_size: int | None = None
    """Width of the MLP; 4*hidden_size when unset. Gated activations use one third of it for each half, which keeps the
    number of parameters; ffn_hidden_size says the width as it is."""

    ffn_hidden_size: int | None = None
    """Width of the MLP taken literally, as other programs' intermediate_size: what the second matrix takes in, and for
    gated activations also each half of what the first gives. Excludes intermediate_size and expansion_factor."""

    mlp_multiple_of: int = 1
    """MLP widths are rounded up to a multiple of this."""

    expansion_factor: float | None = None
    """MLP width as a multiple of hidden_size, treated as intermediate_size is, which it excludes."""

    seq_length: int | None = None
    """Tokens per training sample; defaults to max_position_embeddings."""

    max_position_embeddings: int | None = None
    """Longest sequence the model can take; rows of the learned position table. Required, at least seq_length."""

    norm: Literal[
        "layernorm", "rmsnorm", "non_parametric_layernorm", "scalenorm", "te_rmsnorm", "te_layernorm"
    ] = "layernorm"
    """Normalisation of all blocks and of the final layer. te_rmsnorm and te_layernorm are those of the package
    transformer_engine."""

    norm_placement: Literal["pre", "post"] = "pre"
    """Where the norms of a block stand: before each branch, x + branch(norm(x)), with a final norm at the end; or
    behind it, norm(x + branch(x)), without a final norm, as in the original transformer and OPT-350M."""

    layernorm_fusion: bool = False
    """A hint without effect on results: torch's LayerNorm is already one fused kernel in both directions."""

    rmsnorm_fusion: bool = False
    """A hint without effect on results: torch's RMSNorm is used in any case, which is one kernel where it has one."""

    layernorm_epsilon: float = 1.0e-5
    """Added to the variance inside the square root of layernorm variants."""

    rms_norm_epsilon: float = 1.0e-8
    """Added to the mean square inside the square root of rmsnorm variants."""

    scalenorm_epsilon: float = 1.0e-8
    """Smallest norm scalenorm divides by."""

    pos_emb: Literal["learned", "rotary", "sinusoidal", "rpe", "alibi", "none"] = "learned"
    """How tokens learn their position: from a learned table or fixed sines and cosines at the embedding; by rotary
    angles on queries and keys; by what is added to the scores of attention, a learned bias for each range of distances
    (rpe, as in T5) or one that grows with the distance (alibi); or not at all."""

    rpe_num_buckets: int = 32
    """Number of distance buckets of the T5-style relative bias (pos_emb rpe)."""

    rpe_max_distance: int = 128
    """Distance at which the last bucket of the relative bias begins (pos_emb rpe)."""

    opt_pos_emb_offset: int = 0
    """Constant added to the ids of learned positions, for which max_position_embeddings must have room; OPT uses 2."""

    embedding_layernorm: bool = False
    """Normalise the word embeddings, before positions are added, with a norm of the kind `norm`, as BLOOM does."""

    embedding_size: int | None = None
    """Width of the word embeddings where it is not hidden_size: they are projected to hidden_size behind the embedding,
    and back before the output, by matrices without biases, as in OPT-350M."""

    use_bias_in_output: bool = False
    """Give the output layer a bias, as in GPT-J and Phi; needs no_weight_tying."""

    no_weight_tying: bool = False
    """Give the output layer its own matrix instead of the word embedding's."""

    num_unique_layers: int | None = None
    """Number of blocks with parameters of their own; the others share them (ALBERT). Divides num_layers."""

    param_sharing_style: Literal["grouped", "spaced"] = "grouped"
    """Order in which shared blocks repeat: grouped is 0 0 1 1, spaced 0 1 0 1."""

    make_vocab_size_divisible_by: int = 128
    """The vocabulary is padded to a multiple of this times model_parallel_size."""

    fused_kernels_build_path: str | None = None
    """Folder in which the CUDA kernel of rwkv layers is built; megatron/fused_kernels/build when unset."""

    fp16_lm_cross_entropy: bool = False
    """Compute the loss in half precision; needs precision fp16."""

    init_method_std: float = 0.02
    """Standard deviation of the normal initialisers."""

    use_cpu_initialization: bool = False
    """Draw initial weights with the CPU generator, which makes them the same on every kind of device."""

    rotary_pct: float = 1.0
    """Share of each head's dimensions that rotary positions turn."""

    rotary_emb_base: int = 10000
    """Base of the rotary wavelengths (theta)."""

    rope_scaling: dict | None = None
    """Rotary positions for longer texts than the model was trained on, under Hugging Face's names: rope_type, one of
    linear (factor), dynamic (factor), yarn (factor; attention_factor, beta_fast, beta_slow, mscale, mscale_all_dim,
    truncate), llama3 (factor, low_freq_factor, high_freq_factor) or longrope (short_factor, long_factor; factor,
    attention_factor). max_position_embeddings is the length after scaling, original_max_position_embeddings inside the
    dictionary the one before (unset: the same; llama3 and longrope need it). The frequencies of dynamic and longrope
    follow the length of the sequence; with a cache, as in Hugging Face's models, keys stay as they were rotated, and
    beyond the original length cached and recomputed generation differ a little."""

    rotary_save_freqs_buffer: bool = False
    """Keep the rotary inverse frequencies in checkpoints."""

    init_method: InitMethod = "normal"
    """Initialiser of embeddings, query-key-value, the first MLP matrix and an untied output matrix."""

    output_layer_init_method: InitMethod = "scaled_normal"
    """Initialiser of the matrices that write into the residual stream."""

    output_layer_parallelism: Literal["column"] = "column"
    """Which dimension of an untied output matrix is split over tensor-parallel processes."""

    soft_prompt_tuning: dict | None = None
    """Train only a prompt of embeddings: keys enabled, n_tokens (or num_tokens), init_string, init_range."""

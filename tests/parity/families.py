"""One small model of every kind that a family has, as transformers makes it.

A case is a function that gives a transformers config; the tests give its model random weights, biases included.
"""

from pathlib import Path

import torch
import transformers

VOCABULARY, TOKENS, LENGTH = 69, 67, 12  # odd, and more rows than tokens
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 24,
}
# For configs that name the width of their MLP in ways of their own.
NO_WIDTH = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
GPT2 = {**NO_WIDTH, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# The row of a token for padding would not be trained.
OPT = {**NO_WIDTH, "ffn_dim": 44, "dropout": 0.0, "pad_token_id": None}
FALCON_40B = {**NO_WIDTH, "new_decoder_architecture": True, "num_kv_heads": 2}
MAMBA = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}

CASES = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt_neox, sequential, tanh gelu, no attention biases": lambda: transformers.GPTNeoXConfig(
        **SIZES,
        use_parallel_residual=False,
        hidden_act="gelu_new",
        attention_bias=False,
        rotary_pct=1.0,
        rotary_emb_base=2000,
        layer_norm_eps=1e-3,
    ),
    "gpt_neox, tied": lambda: transformers.GPTNeoXConfig(**SIZES, tie_word_embeddings=True),
    "gpt_neox, stretched": lambda: transformers.GPTNeoXConfig(
        **SIZES, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, biases, grouped, large heads, tied": lambda: transformers.LlamaConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=12,
        attention_bias=True,
        mlp_bias=True,
        hidden_act="gelu",
        tie_word_embeddings=True,
    ),
    "llama, stretched as LLaMA 3.1": lambda: transformers.LlamaConfig(
        **SIZES,
        num_key_value_heads=1,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    ),
    "llama, stretched dynamically": lambda: transformers.LlamaConfig(
        **{**SIZES, "max_position_embeddings": LENGTH}, rope_scaling={"rope_type": "dynamic", "factor": 2.0}
    ),
    "llama, stretched by YaRN": lambda: transformers.LlamaConfig(
        **SIZES,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6},
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=5),
    "mistral, no window": lambda: transformers.MistralConfig(
        **SIZES, num_key_value_heads=4, sliding_window=None
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SIZES, num_key_value_heads=2, num_local_experts=4, experts_implementation="eager"
    ),
    "stablelm": lambda: transformers.StableLmConfig(**SIZES, num_key_value_heads=2, use_qkv_bias=True),
    "stablelm, norms of queries and keys": lambda: transformers.StableLmConfig(
        **SIZES, num_key_value_heads=2, qk_layernorm=True, use_parallel_residual=True
    ),
    "stablelm, parallel": lambda: transformers.StableLmConfig(
        **SIZES, num_key_value_heads=4, use_parallel_residual=True
    ),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2, scores not scaled, other MLP, untied": lambda: transformers.GPT2Config(
        **GPT2,
        scale_attn_weights=False,
        n_inner=44,
        activation_function="gelu",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
    ),
    "gptj": lambda: transformers.GPTJConfig(**NO_WIDTH, rotary_dim=4),
    "gptj, all features rotated": lambda: transformers.GPTJConfig(**NO_WIDTH, rotary_dim=8, n_inner=44),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **NO_WIDTH, attention_types=[[["global", "local"], 1]], window_size=3
    ),
    "gpt_neo, untied": lambda: transformers.GPTNeoConfig(
        **SIZES, attention_types=[[["global"], 2]], tie_word_embeddings=False
    ),
    "opt": lambda: transformers.OPTConfig(**OPT),
    "opt, as 350M": lambda: transformers.OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=20),
    "opt, as Galactica": lambda: transformers.OPTConfig(
        **OPT, enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"
    ),
    "bloom": lambda: transformers.BloomConfig(**NO_WIDTH),
    "bloom, 6 heads, untied": lambda: transformers.BloomConfig(
        **{**NO_WIDTH, "hidden_size": 24, "num_attention_heads": 6}, tie_word_embeddings=False
    ),
    "falcon, as 7B": lambda: transformers.FalconConfig(**NO_WIDTH, ffn_hidden_size=44),
    "falcon, as 40B": lambda: transformers.FalconConfig(**FALCON_40B),
    "falcon, as Falcon2-11B": lambda: transformers.FalconConfig(
        **FALCON_40B, num_ln_in_parallel_attn=1, tie_word_embeddings=False
    ),
    "falcon, sequential": lambda: transformers.FalconConfig(
        **NO_WIDTH, multi_query=False, parallel_attn=False, bias=True
    ),
    "mamba": lambda: transformers.MambaConfig(**MAMBA),
    "mamba, other width, no bias in the convolution, untied": lambda: transformers.MambaConfig(
        **MAMBA, expand=3, use_conv_bias=False, tie_word_embeddings=False, layer_norm_epsilon=1e-3
    ),
}


def make_model(case: str) -> transformers.PreTrainedModel:
    """A model of the case whose parameters are all random."""
    torch.manual_seed(len(case))
    config = CASES[case]()
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if parameter.dim() == 1 and "bias" not in name:
                parameter.add_(1.0)
    return model


def save_model(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """The model with a tokenizer of fewer tokens than it has rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    model.save_pretrained(folder)
    words = ["<|endoftext|>", *(f"w{number}" for number in range(1, TOKENS))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[0])
    fast.save_pretrained(folder)
    return folder


def texts(first: int, count: int) -> torch.Tensor:
    """int64 [count, LENGTH + 1]."""
    generator = torch.Generator().manual_seed(first)
    return torch.randint(1, TOKENS, (count, LENGTH + 1), generator=generator)

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
    "stablelm, parallel": lambda: transformers.StableLmConfig(
        **SIZES, num_key_value_heads=4, use_parallel_residual=True
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

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

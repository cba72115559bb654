"""Small Hugging Face models with random weights, in folders."""

from pathlib import Path

import torch
import transformers

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 16,
}


def make(
    config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32
) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.to(dtype)


def gpt_neox(folder: Path, dtype: torch.dtype = torch.float32, **keys) -> transformers.PreTrainedModel:
    model = make(transformers.GPTNeoXConfig(**SIZES, **keys), dtype)
    model.save_pretrained(folder)
    return model


def same_bits(one: transformers.PreTrainedModel, other: transformers.PreTrainedModel) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

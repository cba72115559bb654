"""Files as they are published: names of the model without its output, masks that were stored, tied outputs beside."""

import pytest
import torch
import transformers

from megatron.common.errors import CheckpointError
from megatron.conversion.from_hf import import_hf
from megatron.conversion.to_hf import export_hf
from tests.unit.conversion.models import SIZES, make, same_bits

NO_WIDTH = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
CONFIGS = {
    "gpt2": transformers.GPT2Config(**NO_WIDTH),
    "gpt_neo": transformers.GPTNeoConfig(**NO_WIDTH, attention_types=[[["global", "local"], 1]]),
    "opt": transformers.OPTConfig(**NO_WIDTH, ffn_dim=44),
    "bloom": transformers.BloomConfig(**NO_WIDTH),
    "falcon": transformers.FalconConfig(**NO_WIDTH),
    "mamba": transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2),
}
MASKS = {"gpt2": "h.{}.attn.bias", "gpt_neo": "h.{}.attn.attention.masked_bias"}


def publish(model, folder, extra: dict[str, torch.Tensor]) -> None:
    """The model in a torch file, under the names that its base model gives."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    prefix = model.base_model_prefix + "."
    named = {name.removeprefix(prefix): value for name, value in model.state_dict().items()}
    torch.save(named | extra, folder / "pytorch_model.bin")


@pytest.mark.parametrize("family", CONFIGS)
def test_they_are_taken_over(family, tmp_path):
    model = make(CONFIGS[family])
    pattern = MASKS.get(family)
    masks = {pattern.format(number): torch.ones(16, 16) for number in range(2)} if pattern else {}
    publish(model, tmp_path / "theirs", masks)
    config = import_hf(tmp_path / "theirs", tmp_path / "ours")
    folder = export_hf(config.parent / "global_step0", [], tmp_path / "back", family)
    assert same_bits(transformers.AutoModelForCausalLM.from_pretrained(folder), model)


def test_a_weight_without_a_place_is_named(tmp_path):
    publish(make(CONFIGS["opt"]), tmp_path / "theirs", {"decoder.layers.0.adapter.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match="no place for the weights decoder.layers.0.adapter.weight"):
        import_hf(tmp_path / "theirs", tmp_path / "ours")

"""Folders as Meta publishes them, cut over several files, give the model that transformers has of them."""

import json

import pytest
import torch
import transformers

from megatron.common.errors import CheckpointError, ConfigError
from megatron.conversion.compare import check_logits
from megatron.conversion.meta_llama import halves_of_pairs, import_meta
from megatron.conversion.to_hf import export_hf
from tests.unit.conversion.models import SIZES, make, same_bits

NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEADS, GROUPS = 4, 2
PARAMS = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": HEADS,
    "n_kv_heads": GROUPS,
    "norm_eps": 1e-5,
    "vocab_size": -1,
}


def pairs_of_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Features of a head in the order 0, d/2, 1, d/2+1, ..."""
    size = rows.shape[0] // heads
    order = [place for pair in range(size // 2) for place in (pair, pair + size // 2)]
    return rows.unflatten(0, (heads, size))[:, order].flatten(0, 1)


def publish(model, folder, count: int, embedding_by: int, **params):
    """The files of a model over `count` ranks."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    for rank in range(count):
        shard = {"rope.freqs": torch.ones(4)}
        for name, value in model.state_dict().items():
            if name == "model.embed_tokens.weight":
                shard["tok_embeddings.weight"] = value.chunk(count, embedding_by)[rank].clone()
            elif name == "lm_head.weight":
                shard["output.weight"] = value.chunk(count)[rank].clone()
            elif name == "model.norm.weight":
                shard["norm.weight"] = value
            else:
                _, _, number, stem = name.removesuffix(".weight").split(".", 3)
                if heads := {"self_attn.q_proj": HEADS, "self_attn.k_proj": GROUPS}.get(stem):
                    value = pairs_of_halves(value, heads)
                if "norm" not in stem:
                    value = value.chunk(count, int(stem.endswith(("o_proj", "down_proj"))))[rank].clone()
                shard[f"layers.{number}.{NAMES[stem]}.weight"] = value
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")


def llama(**keys):
    config = {**SIZES, "vocab_size": 62, "num_key_value_heads": GROUPS, "rms_norm_eps": 1e-5, **keys}
    return make(transformers.LlamaConfig(**config))


def test_rows_of_rotary_heads_are_put_in_halves():
    rows = torch.arange(8)[:, None].float()
    assert halves_of_pairs(rows, 1)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(halves_of_pairs(pairs_of_halves(rows, 2), 2), rows)


@pytest.mark.parametrize(
    ("files", "embedding_by", "params", "keys"),
    [
        (1, 0, {}, {}),
        (2, 1, {}, {}),
        (2, 0, {"rope_theta": 500000.0}, {"rope_theta": 500000.0}),
    ],
)
def test_the_model_is_that_of_transformers(tmp_path, files, embedding_by, params, keys):
    model = llama(**keys)
    model.save_pretrained(tmp_path / "hf")
    publish(model, tmp_path / "meta/7B", files, embedding_by, **params)
    config = import_meta(tmp_path / "meta", "7B", tmp_path / "neox", tensor=2, pipe=1, longest=16)
    tree = tmp_path / "neox/global_step0"
    assert (tree / "layer_02-model_01-model_states.pt").is_file()
    assert check_logits(tmp_path / "hf", config, tree) < 1e-5
    export_hf(tree, [], tmp_path / "back", architecture="llama")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert same_bits(again, model)
    assert again.config.rope_parameters == model.config.rope_parameters
    assert again.config.max_position_embeddings == 16


def test_scaled_positions_of_llama_3_and_windows_of_mistral_are_taken_over(tmp_path):
    scaled = {"use_scaled_rope": True, "rope_theta": 500000.0}
    publish(llama(), tmp_path / "three", 1, 0, **scaled)
    import_meta(tmp_path / "three", "7B", tmp_path / "three/neox", longest=131072)
    text = (tmp_path / "three/neox/config.yml").read_text()
    assert (
        "rope_type: llama3" in text
        and "factor: 8.0" in text
        and "original_max_position_embeddings: 8192" in text
    )
    publish(llama(), tmp_path / "mistral", 1, 0, sliding_window=7)
    import_meta(tmp_path / "mistral", "mistral-7B-v0.1", tmp_path / "mistral/neox")
    assert "sliding_window_width: 7" in (tmp_path / "mistral/neox/config.yml").read_text()


def test_folders_that_are_not_complete_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no params.json"):
        import_meta(tmp_path, "7B", tmp_path / "neox")
    publish(llama(), tmp_path / "7B", 2, 1)
    (tmp_path / "7B/consolidated.00.pth").unlink()
    with pytest.raises(
        CheckpointError, match=r"consolidated.00.pth and all that follow it; found the numbers \[1\]"
    ):
        import_meta(tmp_path, "7B", tmp_path / "neox")

"""Trees that GPT-NeoX wrote are exported as it would run them."""

import pytest
import torch
import transformers

from megatron.common.errors import CheckpointError, ConfigError
from megatron.conversion.from_hf import import_hf
from megatron.conversion.to_hf import export_hf
from tests.unit.conversion.models import gpt_neox

CONFIG = """
num_layers: 2
hidden_size: 32
num_attention_heads: 4
seq_length: 16
max_position_embeddings: 16
pos_emb: rotary
rotary_pct: 0.25
no_weight_tying: true
gpt_j_residual: {parallel}
ffn_hidden_size: 44
model_parallel_size: 2
train_batch_size: 32
train_iters: 10
"""


def write_tree(model, folder, shares: float):
    """What GPT-NeoX writes for two tensor ranks, under its older names; each keeps `shares` of the rows' biases."""
    for rank in range(2):
        module = {}
        for name, value in model.state_dict().items():
            if name.startswith("gpt_neox.layers."):
                _, _, number, path = name.split(".", 3)
                if path.endswith(("dense.weight", "dense_4h_to_h.weight")):
                    value = value.chunk(2, 1)[rank]
                elif path.endswith(("dense.bias", "dense_4h_to_h.bias")):
                    value = value * shares
                elif "layernorm" not in path:
                    value = value.chunk(2)[rank]
                module[f"sequential.{int(number) + 2}.{path}"] = value.contiguous()
            elif "final_layer_norm" in name:
                module[f"sequential.5.norm.{name.rsplit('.', 1)[1]}"] = value
            elif "embed_in" in name:
                module["sequential.0.word_embeddings.weight"] = value.chunk(2)[rank].contiguous()
            else:
                module["sequential.6.final_linear.weight"] = value.chunk(2)[rank].contiguous()
        folder.mkdir(exist_ok=True)
        torch.save({"module": module, "iteration": 5}, folder / f"mp_rank_{rank:02d}_model_states.pt")


@pytest.mark.parametrize(("parallel", "shares"), [(True, 0.5), (False, 1.0)])
@torch.no_grad()
def test_biases_of_row_parallel_layers_count_once(tmp_path, parallel, shares):
    model = gpt_neox(tmp_path / "hf", use_parallel_residual=parallel, rotary_pct=0.25)
    model.resize_token_embeddings(64)
    write_tree(model, tmp_path / "global_step5", shares)
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.format(parallel=str(parallel).lower()))
    export_hf(tmp_path / "global_step5", [config], tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert again.config.vocab_size == 64
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_what_the_other_side_cannot_express_is_named_with_a_way_out(tmp_path):
    gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox")
    tree = tmp_path / "neox/global_step0"
    with pytest.raises(
        ConfigError, match="(?s)LlamaForCausalLM cannot express norm='layernorm'.*--architecture .*gpt_neox"
    ):
        export_hf(tree, [], tmp_path / "back", architecture="llama")
    with pytest.raises(ConfigError, match="sliding_window_width=8 .*no other architecture can"):
        export_hf(tree, [], tmp_path / "back", overwrite_values={"sliding_window_width": 8})
    with pytest.raises(ConfigError, match="unknown family 'neoks'"):
        export_hf(tree, [], tmp_path / "back", architecture="neoks")
    assert not (tmp_path / "back").exists()


def test_a_config_of_another_model_is_noticed(tmp_path):
    gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox")
    tree = tmp_path / "neox/global_step0"
    with pytest.raises(
        CheckpointError, match=r"mlp.linear1.weight .* is \(44, 32\), but the config describes \(48, 32\)"
    ):
        export_hf(tree, [], tmp_path / "back", overwrite_values={"ffn_hidden_size": 48})
    with pytest.raises(CheckpointError, match="has no 4.*the config describes another model"):
        export_hf(tree, [], tmp_path / "back", overwrite_values={"num_layers": 3})
    with pytest.raises(CheckpointError, match="is no folder of a checkpoint"):
        export_hf(tmp_path / "nothing", [], tmp_path / "back")


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox")
    path = tmp_path / "neox/global_step0/mp_rank_00_model_states.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states\.pt is damaged"):
        export_hf(path.parent, [], tmp_path / "back")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": "3XB"}, "--max_shard_size '3XB' is no size"),
        ({"shard_size": "0GB"}, "--max_shard_size '0GB' is no size"),
        ({"pad_token_id": 61}, "--pad-token-id 61 is beyond the model's vocabulary of 61 rows"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(tmp_path, options, message):
    gpt_neox(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "neox")
    with pytest.raises(ConfigError, match=message):
        export_hf(tmp_path / "neox", [], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_numbers_that_the_other_format_cannot_hold_are_refused_both_ways(tmp_path):
    model = gpt_neox(tmp_path / "hf")
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[3] = 7e4
    model.save_pretrained(tmp_path / "hf")
    words = (
        "numbers as large as 70000, which torch.float16 cannot hold; convert with --precision bf16 or fp32"
    )
    with pytest.raises(CheckpointError, match=f"^3.mlp.linear2.bias has {words}"):
        import_hf(tmp_path / "hf", tmp_path / "half", precision="fp16")
    import_hf(tmp_path / "hf", tmp_path / "native")
    with pytest.raises(CheckpointError, match=f"^gpt_neox.layers.1.mlp.dense_4h_to_h.bias has {words}"):
        export_hf(tmp_path / "native" / "global_step0", [], tmp_path / "again", precision="fp16")
